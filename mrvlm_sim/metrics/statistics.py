"""Success rates and their comparison: every rate carries its interval, every comparison is paired by episode."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

CONFIDENCE = 0.95


def wilson(successes: int, attempts: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a success rate (Wilson, 1927), without continuity correction: (low, high) in [0, 1].

    No attempts say nothing: (0, 1).

    Raises:
        ValueError: successes are not within 0 and attempts, or confidence is not between 0 and 1.

    >>> low, high = wilson(8, 10)
    >>> f"{low:.3f} {high:.3f}"
    '0.490 0.943'
    """
    if not 0 <= successes <= attempts:
        raise ValueError(f"successes must be within 0 and attempts, not {successes} of {attempts}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    if attempts == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(attempts)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def time_to_failure(time: float, failures: int, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean time to failure, (mean, low, high), of what ran for some time in all and failed so often.

    The exact interval of a constant rate of failure in a test that is ended by time (Epstein and Sobel, 1953; Garwood,
    1936). Without failures, mean and high are infinite.

    Raises:
        ValueError: time or failures are negative.

    >>> mean, low, high = time_to_failure(1000, 4)
    >>> f"{mean:.0f} {low:.0f} {high:.0f}"
    '250 98 918'
    """
    if time < 0 or failures < 0:
        raise ValueError(f"time and failures must be at least 0, not {time} and {failures}")
    from scipy.stats import chi2

    tail = (1 - confidence) / 2
    low = 2 * time / float(chi2.ppf(1 - tail, 2 * failures + 2))
    if failures == 0:
        return inf, low, inf
    return time / failures, low, 2 * time / float(chi2.ppf(tail, 2 * failures))


@dataclass(frozen=True)
class PairedComparison:
    """Success rate of arm a minus that of arm b on the same episodes, with its 95 % interval."""

    difference: float
    low: float
    high: float
    p_value: float  # exact McNemar, two-sided, uncorrected
    pairs: int


def compare_paired(a: np.ndarray, b: np.ndarray) -> PairedComparison:
    """Compare two arms by their successes on the same episodes: bool (episodes,) each, in the same order.

    The interval is Newcombe's method 10 (Statistics in Medicine 17:2635, 1998): Wilson intervals of both rates,
    joined by the correlation of the pairs. The p-value is McNemar's, as an exact binomial test of the episodes
    on which the arms differ; 1 if there are none.

    Raises:
        ValueError: an array is not bool, not one-dimensional or empty, or their lengths differ.
    """
    a, b = _successes("a", a), _successes("b", b)
    if len(a) != len(b):
        raise ValueError(f"both arms must have run the same episodes, not {len(a)} and {len(b)}")
    both, only_a, only_b, neither = (int(np.sum(x)) for x in (a & b, a & ~b, ~a & b, ~a & ~b))
    low, high = _newcombe(both, only_a, only_b, neither)
    difference = (only_a - only_b) / len(a)
    return PairedComparison(difference, low, high, _mcnemar(only_a, only_b), len(a))


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean of independent values (n,) with Student's interval: (mean, low, high); of one value, it is unbounded."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, -np.inf, np.inf
    half = float(t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / sqrt(n))
    return mean, mean - half, mean + half


def difference_interval(a: np.ndarray, b: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Difference of the means of independent samples (n,) and (m,) with Welch's interval (1947): (mean, low, high).

    Of samples that do not vary, or of one value, it is unbounded.
    """
    from scipy.stats import ttest_ind

    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2 or np.ptp(a) == np.ptp(b) == 0:
        return mean, -np.inf, np.inf
    low, high = ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
    return mean, float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979), in the order given; controls the family-wise error.

    Raises:
        ValueError: a p-value is not within 0 and 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p-values must be within 0 and 1, not {p}")
    raw = np.asarray(p_values, dtype=float)
    order = np.argsort(raw)
    corrected = np.empty(len(raw))
    corrected[order] = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)).clip(max=1)
    return corrected.tolist()


def _successes(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool or values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"{name} must be a non-empty bool array of shape (episodes,), not {values.dtype} {values.shape}"
        )
    return values


def _mcnemar(only_a: int, only_b: int) -> float:
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Interval of the difference: distances to the two Wilson limits, added as sides of a triangle."""
    pairs = both + only_a + only_b + neither
    rate_a, rate_b = (both + only_a) / pairs, (both + only_b) / pairs
    low_a, high_a = wilson(both + only_a, pairs)
    low_b, high_b = wilson(both + only_b, pairs)
    phi = _correlation(both, only_a, only_b, neither)
    difference = (only_a - only_b) / pairs
    below = _third_side(rate_a - low_a, high_b - rate_b, phi)
    above = _third_side(high_a - rate_a, rate_b - low_b, phi)
    return difference - below, difference + above


def _third_side(x: float, y: float, cosine: float) -> float:
    return sqrt(max(0.0, x**2 - 2 * cosine * x * y + y**2))


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Phi of the fourfold table; positive values shrunk towards 0 by a continuity correction (method 10)."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    excess = both * neither - only_a * only_b
    pairs = both + only_a + only_b + neither
    return (max(excess - pairs / 2, 0.0) if excess > 0 else excess) / sqrt(margins)


def interquartile_mean(rates: Sequence[float]) -> float:
    """Mean of the middle half (Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021).

    A quarter of the weight is cut off at either end; where that splits a value, the value counts in part.

    >>> interquartile_mean([0.0, 0.4, 0.6, 1.0])
    0.5
    """
    ordered = np.sort(np.asarray(rates, dtype=float))
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weights = np.clip(edges[1:], 0.25, 0.75) - np.clip(edges[:-1], 0.25, 0.75)
    return float(weights @ ordered / weights.sum())


def over_tasks(
    successes: Sequence[np.ndarray], against: Sequence[np.ndarray] | None = None, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Interquartile mean over tasks of an arm's success rates, with the 95 % interval of a stratified bootstrap.

    `successes` are bool (episodes,), one array per task; episodes are drawn anew within every task. With `against`,
    another arm on the same episodes, it is the difference of the two, and both are drawn together.
    """
    rng = np.random.default_rng(seed)
    values = [_over_tasks(successes, against, [slice(None)] * len(successes))]
    for _ in range(resamples):
        drawn = [rng.integers(len(task), size=len(task)) for task in successes]
        values.append(_over_tasks(successes, against, drawn))
    low, high = np.percentile(values[1:], [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return values[0], float(low), float(high)


def _over_tasks(successes: Sequence[np.ndarray], against: Sequence[np.ndarray] | None, drawn: Sequence) -> float:
    own = interquartile_mean([task[chosen].mean() for task, chosen in zip(successes, drawn, strict=True)])
    if against is None:
        return own
    return own - interquartile_mean([task[chosen].mean() for task, chosen in zip(against, drawn, strict=True)])
