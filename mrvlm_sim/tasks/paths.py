"""Paths of things that move by themselves: smooth closed curves, as functions of the time alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

POINTS = 400  # along a curve
HARMONICS = 2
STEP = 0.1  # seconds between the moments at which paths are compared


@dataclass(frozen=True)
class Path:
    """A closed curve that is run through at constant speed, beginning at its first point."""

    points: np.ndarray  # float64 (POINTS + 1, 2), metres; the last is the first
    travelled: np.ndarray  # float64 (POINTS + 1,): metres from the first point
    speed: float  # metres per second

    def at(self, time: ArrayLike) -> np.ndarray:
        """Place (..., 2) in metres after `time` (...) seconds."""
        along = (self.speed * np.asarray(time)) % self.travelled[-1]
        return np.stack([np.interp(along, self.travelled, axis) for axis in self.points.T], axis=-1)

    def gap(self, others: Sequence["Path"], seconds: float) -> float:
        """How near any of `others` comes within `seconds`, in metres."""
        times = np.arange(0, seconds, STEP)
        gaps = [np.linalg.norm(self.at(times) - other.at(times), axis=-1).min() for other in others]
        return float(min(gaps, default=np.inf))


def draw_path(rng: np.random.Generator, low: Sequence[float], high: Sequence[float], speed: float) -> Path:
    """A random curve between `low` and `high` (2,) in metres that spans half to all of the way between them."""
    order = np.arange(1, HARMONICS + 1)
    turns = np.linspace(0, 2 * np.pi, POINTS + 1)
    amplitude, phase = rng.normal(size=(2, HARMONICS)) / order, rng.uniform(0, 2 * np.pi, (2, HARMONICS))
    curve = (amplitude[:, None] * np.sin(order * turns[:, None] + phase[:, None])).sum(axis=-1).T
    lowest, span = curve.min(axis=0), np.ptp(curve, axis=0)
    area = np.subtract(high, low)
    size = rng.uniform(0.5, 1.0, 2) * area
    corner = low + rng.uniform(0, 1, 2) * (area - size)
    points = corner + (curve - lowest) / span * size
    points[-1] = points[0]
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return Path(points, np.concatenate([[0.0], np.cumsum(lengths)]), speed)
