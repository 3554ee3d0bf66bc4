"""Behaviour cloning: one recipe for every arm."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.training.adversarial import attacked
from mrvlm_sim.training.dataset import Batch, Dataset, join
from mrvlm_sim.training.initial import begin_as
from mrvlm_sim.training.landmarks import landmark_error, voting_error
from mrvlm_sim.training.trainer import Trainer

CHECK_FRAMES = 256
RELABELLED = 0.25  # of every batch


def losses(network: PolicyNetwork, batch: Batch, voting_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean absolute error of the actions, and of the landmarks what `training.landmarks` says."""
    with torch.autocast(batch.proprio.device.type, torch.bfloat16):
        seen = network.perceive(batch.tokens, batch.boxes, batch.proprio, batch.words)
    actions = network.act(seen.features)
    weight = batch.valid[..., None].float()
    action_loss = ((actions - batch.actions).abs() * weight).sum() / (weight.sum() * actions.shape[-1] + 1e-6)
    landmark_loss = landmark_error(seen.landmarks, batch.landmarks)
    if voting_weight:
        landmark_loss = landmark_loss + voting_weight * voting_error(network, seen, batch.landmarks, batch.shown)
    return action_loss, landmark_loss


class Cloning(Trainer):
    """Learns the experts' actions and where things are.

    Of several datasets, one for each environment, every batch holds equal parts.

    Raises:
        UserError: the card has no recipe of cloning, the policy to begin with does not fit, there are more datasets
            than frames in a batch, or two are of one environment.
    """

    def __init__(self, card: PolicyCard, datasets: Sequence[Dataset], folder: Path) -> None:
        self.card, self.datasets, self.cloning = card, datasets, card.cloning
        names = [dataset.name for dataset in datasets]
        if len(names) > self.cloning.batch:
            raise UserError(f"a batch of {self.cloning.batch} frames has no room for {len(names)} environments")
        if doubled := {name for name in names if names.count(name) > 1}:
            raise UserError(f"{', '.join(sorted(doubled))} is there twice; name every environment once")
        torch.manual_seed(self.cloning.seed)
        network = PolicyNetwork(card.cameras, card.network).to(datasets[0].device)
        proprio = np.concatenate([d.demos.proprio[d.kept[d.train_frames]] for d in datasets])
        network.proprio_mean.copy_(torch.from_numpy(proprio.mean(0)))
        network.proprio_std.copy_(torch.from_numpy(proprio.std(0) + 1e-3))
        if self.cloning.init is not None:
            begin_as(network, card, Path(self.cloning.init))
        super().__init__(network, self.cloning, folder, card.model_dump_json(exclude={"weights", "summary"}))

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch, adversary = self._batch(rng), self.cloning.adversary
        if adversary is not None:
            done = self.update / self.recipe.updates
            batch = replace(batch, tokens=attacked(batch.tokens, partial(self._loss_of, batch), adversary, done, rng))
        return self._loss(batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        action, landmark = losses(self.network, batch, self.cloning.voting_weight)
        return action + self.cloning.landmark_weight * landmark, {"action": action, "landmark": landmark}

    def _loss_of(self, batch: Batch, tokens: Mapping[str, Tensor]) -> Tensor:
        return self._loss(replace(batch, tokens=tokens))[0]

    def check(self) -> dict[str, float]:
        """Errors on held-out episodes, always the same frames and jitter; of several environments, each by its name."""
        figures: dict[str, float] = {}
        for dataset in self.datasets:
            where = f"/{dataset.name}" if len(self.datasets) > 1 else ""
            errors = self._errors(dataset, CHECK_FRAMES // len(self.datasets))
            figures |= {f"check{where}/{name}": error for name, error in errors.items()}
        return figures

    def _errors(self, dataset: Dataset, count: int) -> dict[str, float]:
        if len(dataset.check_frames) == 0:
            return {}
        batch = dataset.sample(dataset.check_frames, count, np.random.default_rng(0))
        with torch.no_grad(), torch.autocast(batch.proprio.device.type, torch.bfloat16):
            actions, landmarks = self.network(batch.tokens, batch.boxes, batch.proprio, batch.words)
        error = (landmarks - batch.landmarks).norm(dim=-1).nanmean(0)
        landmark_errors = {f"landmark{i}_mm": 1000 * e for i, e in enumerate(error.tolist()) if not np.isnan(e)}
        return {"action": (actions - batch.actions).abs()[batch.valid].mean().item(), **landmark_errors}

    def _batch(self, rng: np.random.Generator) -> Batch:
        sizes = shares(self.recipe.batch, len(self.datasets))
        relabelled = shares(round(RELABELLED * self.recipe.batch), len(self.datasets))
        parts = zip(self.datasets, sizes, relabelled, strict=True)
        return join([dataset.sample(dataset.train_frames, size, rng, some) for dataset, size, some in parts])


def shares(whole: int, parts: int) -> list[int]:
    """A number in parts as equal as can be, the larger ones first."""
    return [whole // parts + (part < whole % parts) for part in range(parts)]
