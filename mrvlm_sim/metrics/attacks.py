"""Attacks on the sensor frame: bounded changes, made before any cut, that a policy's wrapper then sees.

`Attack.__call__` owns the rules: it quantises what an attack proposes to whole sensor values, clips it to the bound
and to the valid range, and checks the result. A new attack fills `propose`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.wrappers.tokens import Frames

TensorFrames = dict[str, Tensor]  # camera -> float (S, S, 3) in [0, 1]


@runtime_checkable
class DifferentiablePolicy(Protocol):
    """A policy that can be attacked white-box."""

    def action_chunks(
        self, frames: Mapping[str, Tensor], origins: Mapping[str, np.ndarray], observation: Observation
    ) -> Tensor:
        """Action chunks (K, chunk, action_size) for one observation under K jitters, differentiable to `frames`.

        `frames` are sensor frames (S, S, 3) in [0, 1], `origins` (K, levels, 2) the corners of the cutouts.
        """


class Attack(ABC):
    """An L-infinity attack of size `eps` (in [0, 1] of the pixel range) on every camera that a policy sees."""

    white_box = False

    def __init__(
        self, eps: float, steps: int, policy: object, pyramids: Mapping[str, Pyramid], rng: np.random.Generator
    ) -> None:
        check_size(eps, steps)
        self.eps, self.steps, self.policy, self.pyramids, self.rng = eps, steps, policy, pyramids, rng
        self.largest = 0  # change made so far, in sensor values

    def __call__(self, frames: Frames, observation: Observation) -> Frames:
        """The attacked frames; never further than eps from the clean ones."""
        proposed = self.propose(frames, observation)
        bound = sensor_values(self.eps)
        attacked = {}
        for camera, clean in frames.items():
            change = np.rint(proposed[camera] * 255) - clean
            attacked[camera] = np.clip(clean + np.clip(change, -bound, bound), 0, 255).astype(np.uint8)
            largest = int(np.abs(attacked[camera].astype(np.int16) - clean).max())
            if largest > bound:
                raise AssertionError(f"attack changed a pixel by {largest}/255, the bound is {bound}/255")
            self.largest = max(self.largest, largest)
        return attacked

    @abstractmethod
    def propose(self, frames: Frames, observation: Observation) -> Frames:
        """Attacked frames, float (S, S, 3) in units of [0, 1]; bounds and rounding are enforced afterwards."""


class Noise(Attack):
    """Random signs of full size: the control that every other attack must beat."""

    def propose(self, frames: Frames, observation: Observation) -> Frames:
        bound = sensor_values(self.eps) / 255
        return {c: f / 255 + bound * self.rng.choice([-1.0, 1.0], f.shape) for c, f in frames.items()}


class PGD(Attack):
    """Projected gradient descent (Madry et al., 2018) with expectation over the jitter (Athalye et al., 2018).

    Maximises the squared deviation of the action chunk from the mean clean one. The attacker knows how jitter is
    distributed, not how it falls: every step averages the gradient over fresh draws.
    """

    white_box = True
    jitter_draws = 4  # per step; one is enough without jitter
    relative_step = 2.5  # step size is relative_step * eps / steps

    def propose(self, frames: Frames, observation: Observation) -> Frames:
        assert isinstance(self.policy, DifferentiablePolicy)
        clean = {camera: torch.from_numpy(frame.astype(np.float32) / 255) for camera, frame in frames.items()}
        with torch.no_grad():
            goal = self.policy.action_chunks(clean, self._draw(observation), observation).mean(0)
        change = {c: torch.from_numpy(self.rng.uniform(-self.eps, self.eps, f.shape)).float() for c, f in clean.items()}
        for _ in range(self.steps):
            gradient = self._gradient(clean, change, goal, observation)
            for camera, frame in clean.items():
                moved = change[camera] + self.relative_step * self.eps / self.steps * gradient[camera].sign()
                change[camera] = (frame + moved.clamp(-self.eps, self.eps)).clamp(0, 1) - frame
        return {camera: (frame + change[camera]).numpy() for camera, frame in clean.items()}

    def _gradient(
        self, clean: TensorFrames, change: TensorFrames, goal: Tensor, observation: Observation
    ) -> TensorFrames:
        assert isinstance(self.policy, DifferentiablePolicy)
        moved = {camera: (clean[camera] + change[camera]).requires_grad_() for camera in clean}
        chunks = self.policy.action_chunks(moved, self._draw(observation), observation)
        gradients = torch.autograd.grad((chunks - goal).square().mean(), list(moved.values()))
        return dict(zip(moved, gradients, strict=True))

    def _draw(self, observation: Observation) -> dict[str, np.ndarray]:
        return {
            camera: self._origins(pyramid, observation.get(f"{camera}/gaze"))
            for camera, pyramid in self.pyramids.items()
        }

    def _origins(self, pyramid: Pyramid, gaze: np.ndarray | None) -> np.ndarray:
        draws = self.jitter_draws if pyramid.jitter.amplitude > 0 else 1
        return pyramid.place(pyramid.jitter.stationary(self.rng, (draws, pyramid.levels, 2)), gaze)


ATTACKS: Mapping[str, type[Attack]] = {"noise": Noise, "pgd": PGD}


def check_size(eps: float, steps: int) -> None:
    """Refuse sizes that are no attack on 8-bit pixels.

    Raises:
        UserError: eps is negative, above 1, or below one sensor value; there are no steps.
    """
    if steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    if not 0 < eps <= 1:
        raise UserError(f"--eps must lie in (0, 1], as a part of the pixel range such as 4/255, not {eps:g}")
    if sensor_values(eps) < 1:
        raise UserError(f"--eps {eps:g} is below 1/255 = {1 / 255:.5f}, the smallest change of an 8-bit pixel")


def sensor_values(eps: float) -> int:
    """The largest whole change of an 8-bit pixel within eps."""
    return int(np.floor(eps * 255 + 1e-6))
