"""Psychometric fits find what made the counts, and say how sure they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrvlm_sim.metrics.psychometrics import Psychometric, fit_psychometric, growth, interval, resample

SIZES = np.array([1.0, 1.5, 2.2, 3.2, 4.6, 6.8, 10.0])


@given(st.floats(1.3, 7.5), st.floats(1.5, 8.0), st.floats(0.0, 0.05), st.sampled_from([0.25, 0.5]))
@settings(max_examples=25)
def test_exact_shares_give_back_their_function(size: float, slope: float, lapse: float, guess: float) -> None:
    true = Psychometric(size, slope, lapse, guess)
    trials = np.full(len(SIZES), 1e6)
    found = fit_psychometric(SIZES, true(SIZES) * trials, trials, guess)
    assert found.threshold == pytest.approx(size, rel=0.03)
    assert found(SIZES) == pytest.approx(true(SIZES), abs=0.01)


def test_the_threshold_is_half_way_from_guessing_to_the_best() -> None:
    assert Psychometric(3.0, 4.0, 0.02, 0.25)(np.array(3.0)) == pytest.approx((0.25 + 0.98) / 2)


def test_most_bootstrap_intervals_hold_the_truth() -> None:
    rng, true, trials = np.random.default_rng(0), Psychometric(3.0, 4.0, 0.0, 0.25), np.full(len(SIZES), 60)
    inside = []
    for _ in range(12):
        right = rng.binomial(trials, true(SIZES))
        best = fit_psychometric(SIZES, right, trials, 0.25)
        drawn = [resample(best, SIZES, trials, rng) for _ in range(25)]
        low, high = interval([fit_psychometric(SIZES, counts, trials, 0.25, near=best).threshold for counts in drawn])
        inside.append(low <= true.threshold <= high)
    assert np.mean(inside) >= 0.7


def test_who_only_guesses_has_no_threshold_within_the_sizes() -> None:
    trials = np.full(len(SIZES), 100)
    assert fit_psychometric(SIZES, np.full(len(SIZES), 25), trials, 0.25).threshold > SIZES.max()


def test_who_reads_everything_has_one_below_them() -> None:
    trials = np.full(len(SIZES), 100)
    assert fit_psychometric(SIZES, trials, trials, 0.25).threshold < SIZES.min()


@pytest.mark.parametrize(("sizes", "right"), [([0.0, 1.0], [1, 1]), ([1.0, 2.0], [3, 1]), ([1.0, 2.0], [-1, 1])])
def test_impossible_counts_are_refused(sizes: list[float], right: list[int]) -> None:
    with pytest.raises(ValueError, match="sizes must be positive and the numbers right within their trials"):
        fit_psychometric(np.array(sizes), np.array(right), np.array([2, 2]), 0.25)


@given(st.floats(0.01, 0.5), st.floats(0.1, 3.0))
def test_growth_of_a_line_is_the_line(slope: float, start: float) -> None:
    x = np.array([10.0, 20.0, 30.0, 40.0])
    assert growth(x, slope * x + start) == pytest.approx((slope, start), abs=1e-9)
