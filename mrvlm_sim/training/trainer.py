"""Training that can be stopped at any update and goes on to the bit: optimisers, schedule, checkpoints.

Every update draws its batch and its jitter from a generator named by (seed, update), so a run that was interrupted
goes on as if it had not been.
"""

import pickle
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork

Log = Callable[[int, dict[str, float]], None]
WARM_UP = 0.05  # of the updates


class Rates(Protocol):
    """Of the optimisers."""

    @property
    def matrix_rate(self) -> float:
        """Muon's peak learning rate, for the matrices of the transformer."""

    @property
    def learning_rate(self) -> float:
        """AdamW's, for everything else."""

    @property
    def weight_decay(self) -> float:
        """Of both."""


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
    `make_optimisers`.
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
        self.optimisers = make_optimisers(network, recipe, muon_patches)
        self.peak_rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
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
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        state = {"network": self.network.state_dict(), "optimisers": optimisers, "update": self.update}
        torch.save({**state, "seconds": self.seconds, "card": self.identity}, partial)
        partial.rename(self.checkpoint)
        self.saved = self.update

    def _step(self) -> dict[str, float]:
        rng = np.random.default_rng([self.recipe.seed, self.update])
        for optimiser, peaks in zip(self.optimisers, self.peak_rates, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(self.update / self.recipe.updates)
        total, parts = self.losses(rng)
        self.network.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.update += 1
        return {name: value.item() for name, value in parts.items()}

    def _resume(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.checkpoint} is truncated or damaged; delete it to start again") from error
        if state["card"] != self.identity:
            raise UserError(f"{self.checkpoint} belongs to another card or recipe; choose another --output")
        self.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
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


def make_optimisers(network: PolicyNetwork, recipe: Rates, muon_patches: bool = False) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the hidden matrices of fusion, trunk and action head, AdamW for the rest.

    With a mean-pooled readout and the cosine patch embedding, Muon needed half of AdamW's updates to equal errors
    (700 against 1500 to a loss of 0.29 on `pyramid-48-embedded`). The patch embedding's rate falls with its fan-in
    (Yang et al., "Tensor programs V", 2022): thousands of inputs that all move at once would shake the tokens. Muon for
    it, too, where new detail must be learned: readers of marks were right in 30 % after 200 updates, else in 23 %.
    """
    hidden = [*network.fusion.modules(), *network.trunk.modules(), *list(network.action_head.layers)[:-1]]
    hidden += network.patches.values() if muon_patches else []
    matrices = [module.weight for module in hidden if isinstance(module, torch.nn.Linear)]
    taken = {id(parameter) for parameter in matrices}
    patches = [parameter for parameter in network.patches.parameters() if id(parameter) not in taken]
    chosen = {id(parameter) for parameter in [*patches, *matrices]}
    others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    fan_in = max(parameter.shape[-1] for parameter in patches)
    groups: list[dict[str, Any]] = [
        {"params": others, "lr": recipe.learning_rate},
        {"params": patches, "lr": recipe.learning_rate * network.config.width / fan_in},
    ]
    return [
        torch.optim.Muon(
            matrices, recipe.matrix_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True),
    ]


def schedule(done: float) -> float:
    """Learning rate over its peak: linear warm-up, then half a cosine down to 0."""
    if done < WARM_UP:
        return done / WARM_UP + 1e-3
    return 0.5 * (1 + float(np.cos(np.pi * (done - WARM_UP) / (1 - WARM_UP))))
