"""One change for all frames, found on other episodes than those it is tried in."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from mrvlm_sim.metrics.attacks.base import Moment, Prepared, TensorFrames, device_of, tensors
from mrvlm_sim.metrics.attacks.gradient import BESIDE, GradientAttack
from mrvlm_sim.metrics.attacks.regions import FreePatch, patch_places, patch_sums
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.wrappers.tokens import Frames

PASSES = 10  # gradient steps while it is prepared, for every one of the budget


class Universal(GradientAttack, Prepared):
    """A universal perturbation (Moosavi-Dezfooli et al., 2017): sign steps over looks from other episodes.

    Its deviation from the clean actions is climbed look by look, in expectation over the jitter, with steps that shrink
    to nothing. What that costs is not counted among the passes of an episode, which ask nothing.
    """

    knows = ("off", "unknown")
    prepared: TensorFrames

    def prepare(self, moments: Sequence[Moment]) -> None:
        """Find the change, which is kept in `prepared`, and where a patch goes that may lie anywhere."""
        eps, steps = self.threat.eps, PASSES * self.threat.steps
        device = device_of(self.policy)
        change = {c: self.drawn(eps, frame.shape).to(device) for c, frame in moments[0].frames.items()}
        if isinstance(self.mask, FreePatch):
            self.mask.place = self._steepest_place(moments)
        for step in range(steps):
            moment = moments[int(self.rng.integers(len(moments)))]
            self.begin(moment.frames, moment.observation)
            _, gradient = self.gradient(self.within(change))
            size = eps * (1 - step / steps)
            change = {c: self.allowed[c] * (change[c] + size * gradient[c].sign()).clamp(-eps, eps) for c in change}
        self.prepared = change

    def _steepest_place(self, moments: Sequence[Moment]) -> tuple[float, float]:
        total = np.zeros(len(patch_places()))
        for moment in moments:
            self.begin(moment.frames, moment.observation)
            _, slopes = self.gradient(self.random_change(BESIDE))
            total += sum(patch_sums(slope.abs().sum(-1).cpu().numpy()) for slope in slopes.values())
        return patch_places()[int(total.argmax())]

    def take_over(self, other: Self) -> None:
        self.prepared, self.mask = other.prepared, other.mask

    def propose(self, frames: Frames, observation: Observation) -> Frames:
        seen = tensors(frames, self.policy)
        return {camera: (frame + self.prepared[camera]).cpu().numpy() for camera, frame in seen.items()}
