"""Attacks in a direction of actions that somebody chose: a trained adversary, or nobody."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors
import safetensors.torch
import tomli_w
import torch
from pydantic import Field
from torch import Tensor, nn

from mrvlm_sim.cards import Card, read_card
from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.base import Origins
from mrvlm_sim.metrics.attacks.gradient import PGD
from mrvlm_sim.metrics.attacks.objectives import ExecutedDeviation
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv
from mrvlm_sim.wrappers.tokens import Frames

CARD, WEIGHTS = "adversary.toml", "adversary.safetensors"
SCALE = 0.1  # metres: what landmarks are divided by


class AdversaryCard(Card):
    """`adversary.toml`: what an adversary was trained on."""

    environment: str
    policy: str
    identity: str  # a hash of what that policy is
    eps: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1)]  # gradient steps of every attack
    draws: Annotated[int, Field(ge=1)]
    training_steps: Annotated[int, Field(ge=1)]  # decisions that it learned from
    seed: Annotated[int, Field(ge=0)]
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2)]  # of the layers


class Along(ExecutedDeviation):
    """How far the executed actions go in a direction (A,), from the clean ones."""

    direction: Tensor

    def loss(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        moved = self.outputs(frames, origins, observation).mean(0) - self.clean
        return (moved * self.direction.to(moved.device)).mean()


class Directed(PGD):
    """PGD that drives the actions in the direction that a trained adversary says, or back from where they would go.

    The director and actor of PA-AD (Sun et al., "Who is the strongest enemy?", 2022): the director knows the state of
    the simulation and was trained by reinforcement against the policy's reward; the actor is PGD. Without a director,
    the direction is the opposite of every action.
    """

    objective: Along
    objective_type = Along
    direction: np.ndarray | None = None  # for whoever directs from outside
    director: nn.Module | None = None

    def begin(self, frames: Frames, observation: Observation) -> None:
        super().begin(frames, observation)
        self.objective.direction = torch.from_numpy(self._direction(observation)).float()

    @torch.no_grad()
    def _direction(self, observation: Observation) -> np.ndarray:
        if self.direction is not None:
            return self.direction
        if self.director is None:
            return -self.objective.clean.mean(0).sign().cpu().numpy()
        seen = torch.from_numpy(adversary_sees(self.victim.env, observation))
        return self.director(seen).clamp(-1, 1).numpy()


def adversary_sees(env: SuiteEnv | None, observation: Observation) -> np.ndarray:
    """The state of the simulation as an adversary is told it: landmarks, which there are, and proprioception.

    Raises:
        UserError: the environment is not the suite's own.
    """
    if not isinstance(env, ManipulationEnv):
        raise UserError("an adversary knows where things are in the suite's own environments only")
    landmarks = env.task.landmarks(env.scene)
    there = np.isfinite(landmarks).all(axis=-1)
    placed = np.where(there[:, None], landmarks / SCALE, 0)
    return np.concatenate([placed.ravel(), there, observation["proprio"]]).astype(np.float32)


def make_director(sizes: list[int]) -> nn.Sequential:
    """Layers of those sizes with tanh between them: the actor of stable-baselines3's `MlpPolicy`."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def save_adversary(folder: Path, card: AdversaryCard, director: nn.Sequential) -> None:
    """Write weights and card; the card last."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        {name: weight.detach().contiguous() for name, weight in director.state_dict().items()}, folder / WEIGHTS
    )
    partial = folder / (CARD + ".partial")
    partial.write_text(tomli_w.dumps(card.model_dump(mode="json")), encoding="utf-8")
    partial.rename(folder / CARD)


def adversary_card(folder: Path) -> AdversaryCard:
    """What an adversary was trained on.

    Raises:
        UserError: there is none, or its card is malformed.
    """
    if not (folder / CARD).is_file():
        inner = sorted(card.parent for card in folder.glob(f"*/{CARD}"))
        remedy = f"take {inner[0]}" if inner else "train one: mrvlm-sim train adversary --env ENV --policy POLICY"
        raise UserError(f"no adversary in {folder}; {remedy}")
    return read_card(folder / CARD, AdversaryCard)


def load_adversary(folder: Path) -> nn.Sequential:
    """A director that was saved.

    Raises:
        UserError: there is none, or its files are damaged or do not fit each other.
    """
    director = make_director(adversary_card(folder).sizes)
    try:
        director.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {CARD} beside it: {error}") from error
    return director
