"""Training that can be stopped at any update and goes on to the bit.

Every update draws its batch and its jitter from a generator named by (seed, update), so a run that was interrupted
goes on as if it had not been.
"""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.training.checkpoint import read_checkpoint, write_checkpoint
from mrvlm_sim.training.optimisation import Optimisation, Rates

Log = Callable[[int, dict[str, float]], None]


class Budget(Rates, Protocol):
    """What a training is given."""

    @property
    def updates(self) -> int:
        """How many there are."""

    @property
    def batch(self) -> int:
        """Frames in each."""

    @property
    def seed(self) -> int:
        """Of all that is drawn."""


class Trainer(ABC):
    """Holds network and optimiser; `run` goes on from wherever the last checkpoint was.

    `identity` describes all that decides the result: a checkpoint of another is refused. `muon_patches`: see
    `Optimisation`.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        recipe: Budget,
        folder: Path,
        identity: str,
        muon_patches: bool = False,
    ) -> None:
        self.network, self.recipe, self.folder, self.identity = network, recipe, folder, identity
        self.device = network.proprio_mean.device
        self.optimisation = Optimisation(network, recipe, muon_patches)
        self.update, self.saved, self.seconds = 0, 0, 0.0
        if self.checkpoint.exists():
            self._resume()

    @abstractmethod
    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """What one update minimises, on a batch drawn by `rng`, and the parts of it that are logged."""

    @abstractmethod
    def check(self) -> dict[str, float]:
        """Errors on what is not trained on, always on the same batch."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self, log: Log, log_every: int = 100, save_every: int = 500) -> None:
        """Train to the last update; `log` receives the mean training losses and, when saving, the held-out errors.

        Ctrl-C ends the update that is under way, saves, and comes out as KeyboardInterrupt.
        """
        last, running = self.recipe.updates, list[dict[str, float]]()
        with interrupts_noted() as interrupted:
            while self.update < last:
                started = time.perf_counter()
                running.append(self._step())
                self.seconds += time.perf_counter() - started
                figures: dict[str, float] = {}
                if self.update % log_every == 0 or self.update == last:
                    names = running[0]
                    figures = {f"train/{name}": float(np.mean([step[name] for step in running])) for name in names}
                    figures["train/seconds"] = self.seconds
                    running = []
                if self.update % save_every == 0 or self.update == last:
                    figures |= self.check()
                    self.save()
                if figures:
                    log(self.update, figures)
                if interrupted():
                    self.save()
                    raise KeyboardInterrupt

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        state = {"network": self.network.state_dict(), "optimisers": self.optimisation.state(), "update": self.update}
        write_checkpoint(self.checkpoint, {**state, "seconds": self.seconds, "card": self.identity})
        self.saved = self.update

    def _step(self) -> dict[str, float]:
        rng = np.random.default_rng([self.recipe.seed, self.update])
        total, parts = self.losses(rng)
        self.optimisation.step(total, self.update / self.recipe.updates)
        self.update += 1
        return {name: value.item() for name, value in parts.items()}

    def _resume(self) -> None:
        state = read_checkpoint(self.checkpoint, self.device, "card")
        if state["card"] != self.identity:
            raise UserError(f"{self.checkpoint} belongs to another card or recipe; choose another --output")
        self.network.load_state_dict(state["network"])
        self.optimisation.load(state["optimisers"])
        self.update, self.seconds = state["update"], state["seconds"]
        self.saved = self.update


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only sets a flag inside, which the function given tells; a second one interrupts at once."""
    flagged = False

    def note(signum: int, frame: object) -> None:
        nonlocal flagged
        flagged = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: flagged
    finally:
        signal.signal(signal.SIGINT, previous)
