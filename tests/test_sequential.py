"""Looking after every round does not make the sequential test lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from mrvlm_sim.metrics.sequential import e_value, verdict

pytestmark = pytest.mark.slow


def first_decision(rng: np.random.Generator, rates: tuple[float, float], episodes: int, every: int) -> int | None:
    """After how many episodes two arms of these rates are told apart, if ever."""
    a, b = (rng.random(episodes) < rate for rate in rates)
    looks = range(every, episodes + 1, every)
    return next((n for n in looks if verdict(a[:n], b[:n]).decided), None)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.95])
def test_equal_arms_are_seldom_told_apart(rate: float) -> None:
    """At most 5 % by construction, although every single episode is looked at."""
    rng = np.random.default_rng(0)
    decided = [first_decision(rng, (rate, rate), episodes=300, every=1) is not None for _ in range(400)]
    assert np.mean(decided) <= 0.05


def test_different_arms_are_told_apart_early() -> None:
    rng = np.random.default_rng(0)
    stops = [first_decision(rng, (0.9, 0.5), episodes=200, every=10) for _ in range(200)]
    assert all(stop is not None for stop in stops)
    assert np.median([stop for stop in stops if stop]) <= 40


@given(a=st.integers(0, 30), b=st.integers(0, 30))
def test_it_is_the_mean_likelihood_ratio_over_all_coins(a: int, b: int) -> None:
    mean, _ = quad(lambda p: (2 * p) ** a * (2 * (1 - p)) ** b, 0, 1)
    assert e_value(a, b) == pytest.approx(mean, rel=1e-6)
    assert e_value(a, b) == e_value(b, a)


@given(a=st.integers(0, 200), b=st.integers(0, 200))
def test_it_is_a_fair_game(a: int, b: int) -> None:
    assert (e_value(a + 1, b) + e_value(a, b + 1)) / 2 == pytest.approx(e_value(a, b))


def test_several_comparisons_raise_the_bar() -> None:
    a, b = np.ones(9, bool), np.zeros(9, bool)
    assert verdict(a, b).decided
    assert not verdict(a, b, comparisons=4).decided


def test_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="not -1 and 2"):
        e_value(-1, 2)
    with pytest.raises(ValueError, match="same episodes, not 2 and 3"):
        verdict(np.ones(2, bool), np.ones(3, bool))
    with pytest.raises(ValueError, match="at least one comparison, not 0"):
        verdict(np.ones(2, bool), np.ones(2, bool), comparisons=0)
