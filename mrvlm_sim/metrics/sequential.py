"""When a paired comparison may stop: a test that stays valid however often one looks at it."""

from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np

from mrvlm_sim.metrics.statistics import CONFIDENCE


@dataclass(frozen=True)
class Verdict:
    """Whether two arms are told apart; `evidence` is the e-value, `needed` what it must reach."""

    evidence: float
    needed: float

    @property
    def decided(self) -> bool:
        return self.evidence >= self.needed


def e_value(only_a: int, only_b: int) -> float:
    """Evidence that two arms differ, from the episodes that only arm a and that only arm b solved.

    If they are equally good, either is as likely to be the one that solves such an episode, and the likelihood ratio of
    a uniformly mixed coin over the fair one, 2^n B(a + 1, b + 1), is a martingale that starts at 1: by Ville's
    inequality it ever exceeds 1 / alpha with probability alpha at most (Robbins, 1970; Ramdas et al., "Game-theoretic
    statistics and safe anytime-valid inference", 2023).

    Raises:
        ValueError: a count is negative.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts must be 0 or more, not {only_a} and {only_b}")
    log_beta = lgamma(only_a + 1) + lgamma(only_b + 1) - lgamma(only_a + only_b + 2)
    return exp(min((only_a + only_b) * log(2) + log_beta, 700.0))


def verdict(a: np.ndarray, b: np.ndarray, comparisons: int = 1) -> Verdict:
    """Judge two arms by their successes on the same episodes: bool (episodes,) each, in the same order.

    With several comparisons in one table the bar is raised by their number (Bonferroni).

    Raises:
        ValueError: the arrays differ in length, or there is no comparison.
    """
    if len(a) != len(b):
        raise ValueError(f"both arms must have run the same episodes, not {len(a)} and {len(b)}")
    if comparisons < 1:
        raise ValueError(f"there must be at least one comparison, not {comparisons}")
    return Verdict(e_value(int((a & ~b).sum()), int((~a & b).sum())), comparisons / (1 - CONFIDENCE))
