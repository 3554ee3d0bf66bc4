"""What attacks maximise."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.base import DifferentiablePolicy, EncodingPolicy, Origins, Victim
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv
from mrvlm_sim.tasks.expert import OPEN, towards
from mrvlm_sim.tasks.tabletop import THINGS

SAME = 0.005  # metres: nearer landmarks are of one thing


class Objective(ABC):
    """Larger is worse for the policy. `begin` is told the clean frames, `loss` looks at attacked ones.

    It is of the mean over the jitter, not the mean of what each jitter gives: that would reward scatter, too, and did
    less (of a network with random weights, significantly; of two trained ones, by 0.6 and 2.2 %, which 8 looks cannot
    tell from nothing).
    """

    def __init__(self, victim: Victim) -> None:
        self.victim, self.policy, self.executed = victim, victim.policy, victim.executed

    @torch.no_grad()
    def begin(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> None:
        """A new frame: note what the policy would have done, in the mean over the jitter."""
        self.clean = self.outputs(frames, origins, observation).mean(0)

    @abstractmethod
    def outputs(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        """Of the policy, (K, ...)."""

    def loss(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        """Of one look, under all draws of the jitter: a scalar."""
        return (self.outputs(frames, origins, observation).mean(0) - self.clean).square().mean()


class Deviation(Objective):
    """How far the chunk of actions is from the clean one, squared."""

    def outputs(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        assert isinstance(self.policy, DifferentiablePolicy)
        return self.policy.action_chunks(frames, origins, observation)


class ExecutedDeviation(Deviation):
    """The same of the actions that are carried out before the policy looks again, as they are carried out: clipped.

    The maximal action difference of Zhang et al., "Robust deep reinforcement learning against adversarial perturbations
    on state observations" (2020).
    """

    def outputs(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        return super().outputs(frames, origins, observation)[:, : self.executed].clamp(-1, 1)


class FeatureDeviation(Objective):
    """How far the encoder's features are from the clean ones, squared."""

    def outputs(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        assert isinstance(self.policy, EncodingPolicy)
        return self.policy.encodings(frames, origins, observation)


class Decoy(Deviation):
    """How near the fingertips are driven to another thing than the one that was asked for."""

    def begin(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> None:
        super().begin(frames, origins, observation)
        self.target = torch.from_numpy(way_to_another(self.victim.env)).float()

    def loss(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        ways = self.outputs(frames, origins, observation).mean(0)[: self.executed, : len(self.target)]
        return -(ways - self.target.to(ways.device)).square().mean()


def way_to_another(env: SuiteEnv | None) -> np.ndarray:
    """The translation (3,) of an action that goes straight to the nearest thing or goal that was not named.

    Raises:
        UserError: there is none, or the environment is not the suite's own.
    """
    if not isinstance(env, ManipulationEnv):
        raise UserError(
            "attack targeted knows where things are in the suite's own environments only; take another attack"
        )
    landmarks = env.task.landmarks(env.scene)
    away = np.linalg.norm(landmarks[:, None] - landmarks[None, :THINGS], axis=-1)
    others = landmarks[(np.nan_to_num(away, nan=np.inf) > SAME).all(axis=1) & ~np.isnan(landmarks[:, 0])]
    if len(others) == 0:
        raise UserError(
            f"attack targeted needs a thing that was not named, and {env.name} has none; take another attack"
        )
    nearest = others[np.argmin(np.linalg.norm(others, axis=1))]
    return towards(env.scene, nearest.astype(np.float64), 0.0, OPEN)[:3]
