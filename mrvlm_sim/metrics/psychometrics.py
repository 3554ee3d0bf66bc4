"""Psychometric functions of forced choices, thresholds with their intervals, and how they grow with eccentricity.

Wichmann and Hill, "The psychometric function I: Fitting, sampling, and goodness of fit", Perception & Psychophysics
63:1293, 2001.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mrvlm_sim.metrics.statistics import CONFIDENCE

MOST_LAPSES = 0.06  # of the trials, wrong for another reason than size (Wichmann and Hill)
SLOPES = 0.5, 20.0  # logits per octave of size; steeper is a step
BEYOND = 3.0  # octaves beyond the sizes shown within which a threshold is looked for


@dataclass(frozen=True)
class Psychometric:
    """Share right at size s: guess + (1 - guess - lapse) / (1 + exp(-slope (log2 s - log2 threshold)))."""

    threshold: float  # the size at which the share right is half way from guessing to its best
    slope: float  # logits per octave
    lapse: float
    guess: float

    def __call__(self, sizes: np.ndarray) -> np.ndarray:
        """The share right for sizes of any shape."""
        raised = self.slope * (np.log2(sizes) - np.log2(self.threshold))
        return self.guess + (1 - self.guess - self.lapse) / (1 + np.exp(-raised))


def fit_psychometric(
    sizes: np.ndarray, right: np.ndarray, trials: np.ndarray, guess: float, near: Psychometric | None = None
) -> Psychometric:
    """Maximum likelihood of the binomial counts `right` of `trials` at each of the sizes (n,).

    The search starts at several places, or only at the function that is said to be `near`.

    Raises:
        ValueError: sizes are not positive, or counts are not within their trials.
    """
    from scipy.optimize import minimize

    sizes, right, trials = (np.asarray(values, dtype=float) for values in (sizes, right, trials))
    if (sizes <= 0).any() or (right < 0).any() or (right > trials).any():
        raise ValueError("sizes must be positive and the numbers right within their trials")
    octaves = np.log2(sizes)
    low, high = octaves.min() - BEYOND, octaves.max() + BEYOND

    def surprise(values: np.ndarray) -> float:
        place, slope, lapse = values
        share = guess + (1 - guess - lapse) / (1 + np.exp(-slope * (octaves - place)))
        share = np.minimum(np.maximum(share, 1e-9), 1 - 1e-9)
        return -float(right @ np.log(share) + (trials - right) @ np.log(1 - share))

    starts = [(place, slope, 0.01) for place in np.linspace(low + BEYOND, high - BEYOND, 3) for slope in (2.0, 6.0)]
    if near is not None:
        starts = [(float(np.log2(near.threshold)), near.slope, near.lapse)]
    bounds = [(low, high), SLOPES, (0.0, MOST_LAPSES)]
    best = min((minimize(surprise, start, bounds=bounds, method="L-BFGS-B") for start in starts), key=lambda r: r.fun)
    return Psychometric(float(2 ** best.x[0]), float(best.x[1]), float(best.x[2]), guess)


def resample(fitted: Psychometric, sizes: np.ndarray, trials: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts of a parametric bootstrap: as many trials at each size by someone who is as the function says.

    Wichmann and Hill, "The psychometric function II: Bootstrap-based confidence intervals and sampling", Perception &
    Psychophysics 63:1314, 2001.
    """
    return rng.binomial(trials, fitted(sizes))


def interval(
    values: Sequence[float] | np.ndarray, method: Literal["linear", "nearest"] = "linear"
) -> tuple[float, float]:
    """Percentile interval of bootstrap values, 95 %; `nearest` for values of which some are infinite."""
    low, high = np.percentile(values, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)], method=method)
    return float(low), float(high)


def growth(eccentricities: np.ndarray, thresholds: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the thresholds over eccentricity, by least squares, both in degrees.

    Their quotient intercept / slope is E2, the eccentricity at which the threshold is twice that of the centre (Levi,
    Klein and Aitsebaomo, "Vernier acuity, crowding and cortical magnification", Vision Research 25:963, 1985).
    """
    slope, intercept = np.polyfit(eccentricities, thresholds, 1)
    return float(slope), float(intercept)
