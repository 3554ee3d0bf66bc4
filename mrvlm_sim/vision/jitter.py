"""Jitter: the small random offset of every cutout in every frame, modelled on fixational eye movements.

Three components add up, as in the human eye (Martinez-Conde et al., 2004): tremor is independent in every
frame, drift is a slow bounded random walk, and a saccade is a jump that is then held for some frames.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from mrvlm_sim.cards import Card

Amplitude = Annotated[float, Field(ge=0, le=1)]


class Jitter(Card):
    """Sizes of the components, in half-widths of the parent view (1 = from its centre to its edge)."""

    tremor: Amplitude = 0.0
    drift: Amplitude = 0.0
    drift_step: Amplitude = 0.02
    saccade: Amplitude = 0.0
    saccade_frames: Annotated[int, Field(ge=1)] = 8

    @property
    def amplitude(self) -> float:
        """The largest offset that the sum of all components can reach."""
        return self.tremor + self.drift + self.saccade

    def stationary(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Offsets of independent frames, each as likely as a long run of `JitterProcess` would show it."""
        return sum(
            (rng.uniform(-size, size, shape) for size in (self.tremor, self.drift, self.saccade)), np.zeros(shape)
        )


class JitterProcess:
    """Offsets frame after frame; `next()` gives float64 (levels, 2) = (u, v) offsets from the parent's centre."""

    def __init__(self, jitter: Jitter, levels: int, rng: np.random.Generator) -> None:
        self.jitter, self.levels, self.rng = jitter, levels, rng
        self._drift = self._uniform(jitter.drift)
        self._saccade = self._uniform(jitter.saccade)
        self._frame = int(rng.integers(jitter.saccade_frames))

    def next(self) -> np.ndarray:
        jitter = self.jitter
        offsets = self._uniform(jitter.tremor) + self._drift + self._saccade
        self._drift = _reflect(self._drift + self._uniform(jitter.drift_step), jitter.drift)
        self._frame = (self._frame + 1) % jitter.saccade_frames
        if self._frame == 0:
            self._saccade = self._uniform(jitter.saccade)
        return offsets

    def _uniform(self, size: float) -> np.ndarray:
        return self.rng.uniform(-size, size, (self.levels, 2))


def _reflect(values: np.ndarray, bound: float) -> np.ndarray:
    """Fold values back into [-bound, bound], as a walk between two mirrors (keeps the walk uniform)."""
    if bound == 0:
        return np.zeros_like(values)
    return bound - np.abs((values + bound) % (4 * bound) - 2 * bound)
