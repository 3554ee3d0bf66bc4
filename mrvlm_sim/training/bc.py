"""Behaviour cloning: one recipe for every arm, resumable to the bit.

Every update draws its batch and its jitter from a generator named by (seed, update), so a run that was interrupted
goes on as if it had not been.
"""

import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrvlm_sim.agents.card import PolicyCard, TrainingRecipe
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork, encode_words
from mrvlm_sim.models.heads import LANDMARK_SCALE
from mrvlm_sim.tasks import make_task
from mrvlm_sim.training.demos import Demonstrations
from mrvlm_sim.training.views import MarginViews, kept_frames

HELD_OUT = 0.05  # of the episodes, for the curves
CHECK_FRAMES = 256
WARM_UP = 0.05  # of the updates
RELABELLED = 0.25  # of every batch


@dataclass(frozen=True)
class Batch:
    """One batch on the training device; `valid` (B, chunk) marks the actions before the episode's end."""

    tokens: dict[str, Tensor]
    boxes: dict[str, Tensor]
    proprio: Tensor
    words: Tensor
    actions: Tensor
    valid: Tensor
    landmarks: Tensor


class Dataset:
    """Demonstrations through the eyes of one arm."""

    def __init__(self, demos: Demonstrations, views: dict[str, MarginViews], chunk: int, device: torch.device) -> None:
        self.demos, self.views, self.chunk, self.device = demos, views, chunk, device
        self.task = make_task(demos.environment)
        self.kept = kept_frames(demos)
        held_out = demos.episode[self.kept] >= np.ceil(len(demos.reset_seeds) * (1 - HELD_OUT))
        self.train_frames, self.check_frames = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.words = encode_words(demos.instructions.tolist())
        self.last_frame = np.searchsorted(demos.episode, demos.episode, side="right") - 1

    def sample(self, frames: np.ndarray, size: int, rng: np.random.Generator, relabelled: int = 0) -> Batch:
        """`size` frames drawn from `frames` (indices into the kept ones) with replacement, freshly jittered.

        The first `relabelled` of them get an instruction at random: they have no actions, but teach which thing
        is meant, where the gripper's whereabouts would otherwise give it away.
        """
        demos, device = self.demos, self.device
        drawn = rng.choice(frames, size)
        seen = {camera: views.tokens(drawn, rng) for camera, views in self.views.items()}
        chosen = self.kept[drawn]
        ahead = chosen[:, None] + np.arange(self.chunk)
        last = self.last_frame[chosen][:, None]
        valid, landmarks, words = ahead <= last, demos.landmarks[chosen], self.words[demos.episode[chosen]]
        if relabelled:
            instructions, landmarks[:relabelled] = self.task.relabel(landmarks[:relabelled], rng)
            words[:relabelled] = encode_words(instructions)
            valid[:relabelled] = False
        return Batch(
            tokens={c: torch.from_numpy(tokens).to(device).float() / 255 for c, (tokens, _) in seen.items()},
            boxes={c: torch.from_numpy(boxes).to(device) for c, (_, boxes) in seen.items()},
            proprio=torch.from_numpy(demos.proprio[chosen]).to(device),
            words=words.to(device),
            actions=torch.from_numpy(demos.actions[np.minimum(ahead, last)]).to(device),
            valid=torch.from_numpy(valid).to(device),
            landmarks=torch.from_numpy(landmarks).to(device),
        )


def losses(network: PolicyNetwork, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean absolute error of the actions, and smooth L1 of the landmarks in units of LANDMARK_SCALE."""
    with torch.autocast(batch.proprio.device.type, torch.bfloat16):
        actions, landmarks = network(batch.tokens, batch.boxes, batch.proprio, batch.words)
    weight = batch.valid[..., None].float()
    action_loss = ((actions - batch.actions).abs() * weight).sum() / (weight.sum() * actions.shape[-1] + 1e-6)
    return action_loss, landmark_loss(landmarks, batch.landmarks)


def landmark_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Smooth L1 over the landmarks (B, K, 3) that exist, in units of LANDMARK_SCALE."""
    exists = ~true.isnan()
    return F.smooth_l1_loss(predicted[exists] / LANDMARK_SCALE, true[exists] / LANDMARK_SCALE, beta=0.1)


class Trainer:
    """Holds network and optimiser; `run` goes on from wherever the last checkpoint was."""

    def __init__(self, card: PolicyCard, dataset: Dataset, folder: Path) -> None:
        self.card, self.dataset, self.folder = card, dataset, folder
        recipe = card.training
        torch.manual_seed(recipe.seed)
        self.network = PolicyNetwork(card.cameras, card.network).to(dataset.device)
        proprio = dataset.demos.proprio[dataset.kept[dataset.train_frames]]
        self.network.proprio_mean.copy_(torch.from_numpy(proprio.mean(0)))
        self.network.proprio_std.copy_(torch.from_numpy(proprio.std(0) + 1e-3))
        self.optimisers = make_optimisers(self.network, recipe)
        self.peak_rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.update, self.saved, self.seconds = 0, 0, 0.0
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self, log: Callable[[int, dict[str, float]], None], log_every: int = 100, save_every: int = 500) -> None:
        """Train to the last update; `log` receives the mean training losses and, when saving, the held-out errors.

        Ctrl-C ends the update that is under way, saves, and comes out as KeyboardInterrupt.
        """
        recipe, running = self.card.training, []
        with interrupts_noted() as interrupted:
            while self.update < recipe.updates:
                started = time.perf_counter()
                running.append(self._step())
                self.seconds += time.perf_counter() - started
                figures = {}
                if self.update % log_every == 0 or self.update == recipe.updates:
                    means = np.mean(running, axis=0)
                    figures = {"train/action": means[0], "train/landmark": means[1], "train/seconds": self.seconds}
                    running = []
                if self.update % save_every == 0 or self.update == recipe.updates:
                    figures |= self.check()
                    self.save()
                if figures:
                    log(self.update, figures)
                if interrupted():
                    self.save()
                    raise KeyboardInterrupt

    def check(self) -> dict[str, float]:
        """Errors on held-out episodes, always the same frames and jitter."""
        frames = self.dataset.check_frames
        if len(frames) == 0:
            return {}
        batch = self.dataset.sample(frames, CHECK_FRAMES, np.random.default_rng(0))
        with torch.no_grad(), torch.autocast(batch.proprio.device.type, torch.bfloat16):
            actions, landmarks = self.network(batch.tokens, batch.boxes, batch.proprio, batch.words)
        error = (landmarks - batch.landmarks).norm(dim=-1).nanmean(0)
        figures = {f"check/landmark{i}_mm": 1000 * e for i, e in enumerate(error.tolist())}
        return {"check/action": (actions - batch.actions).abs()[batch.valid].mean().item(), **figures}

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        state = {"network": self.network.state_dict(), "optimisers": optimisers, "update": self.update}
        torch.save({**state, "seconds": self.seconds, "card": self._identity()}, partial)
        partial.rename(self.checkpoint)
        self.saved = self.update

    def _step(self) -> tuple[float, float]:
        recipe = self.card.training
        rng = np.random.default_rng([recipe.seed, self.update])
        for optimiser, peaks in zip(self.optimisers, self.peak_rates, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(self.update / recipe.updates)
        relabelled = int(RELABELLED * recipe.batch)
        batch = self.dataset.sample(self.dataset.train_frames, recipe.batch, rng, relabelled)
        action_error, landmark_error = losses(self.network, batch)
        self.network.zero_grad(set_to_none=True)
        (action_error + recipe.landmark_weight * landmark_error).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.update += 1
        return action_error.item(), landmark_error.item()

    def _resume(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.dataset.device, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.checkpoint} is truncated or damaged; delete it to start again") from error
        if state["card"] != self._identity():
            raise UserError(f"{self.checkpoint} belongs to another card or recipe; choose another --output")
        self.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.update, self.seconds = state["update"], state["seconds"]
        self.saved = self.update

    def _identity(self) -> str:
        return self.card.model_dump_json(exclude={"weights", "summary"})


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


def make_optimisers(network: PolicyNetwork, recipe: TrainingRecipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the hidden matrices of fusion, trunk and action head, AdamW for the rest.

    With a mean-pooled readout and the cosine patch embedding, Muon needed half of AdamW's updates to equal errors
    (700 against 1500 to a loss of 0.29 on `pyramid-48-embedded`). The patch embedding's rate falls with its fan-in
    (Yang et al., "Tensor programs V", 2022): thousands of inputs that all move at once would shake the tokens.
    """
    patches = list(network.patches.parameters())
    matrices = [
        parameter
        for module in [*network.fusion.modules(), *network.trunk.modules(), *list(network.action_head.layers)[:-1]]
        if isinstance(module, torch.nn.Linear)
        for parameter in [module.weight]
    ]
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
