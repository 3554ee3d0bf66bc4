"""Intervals and tests against published figures, and the properties that any data must show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrvlm_sim.metrics.statistics import compare_paired, difference_interval, holm, time_to_failure, wilson

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(
    lambda rows: np.array(rows, dtype=bool).T
)
p_value_lists = st.lists(st.floats(0, 1), max_size=12)


def arms(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Successes of two arms whose pairs fill this fourfold table."""
    cells = np.array([[True, True], [True, False], [False, True], [False, False]])
    a, b = np.repeat(cells, [both, only_a, only_b, neither], axis=0).T
    return a, b


@pytest.mark.parametrize(
    ("successes", "attempts", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_wilson_gives_the_published_intervals(successes: int, attempts: int, low: float, high: float) -> None:
    """The last three: Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3."""
    assert wilson(successes, attempts) == pytest.approx((low, high), abs=5e-5)


def test_no_attempts_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_contains_the_rate_and_mirrors_failures(counts: tuple[int, int], confidence: float) -> None:
    successes, attempts = counts
    low, high = wilson(successes, attempts, confidence)
    assert 0 <= low <= successes / attempts <= high <= 1
    assert wilson(attempts - successes, attempts, confidence) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "attempts"), [(11, 10), (-1, 10), (1, 0), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, attempts: int) -> None:
    with pytest.raises(ValueError, match=f"not {successes} of {attempts}"):
        wilson(successes, attempts)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_wilson_refuses_a_confidence_out_of_range(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        wilson(1, 2, confidence)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe, Statistics in Medicine 17:2635 (1998), method 10
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland et al., Statistics in Medicine 33:2850 (2014)
    ],
)
def test_paired_interval_is_the_published_one(table: tuple[int, int, int, int], low: float, high: float) -> None:
    comparison = compare_paired(*arms(*table))
    assert (comparison.low, comparison.high) == pytest.approx((low, high), abs=5e-4)


def test_exact_mcnemar() -> None:
    comparison = compare_paired(*arms(both=30, only_a=10, only_b=2, neither=8))
    assert comparison.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert comparison.difference == pytest.approx(8 / 50)
    assert comparison.pairs == 50


def test_concordant_pairs_move_the_interval_but_not_the_p_value() -> None:
    few, many = compare_paired(*arms(5, 10, 2, 5)), compare_paired(*arms(50, 10, 2, 50))
    assert many.p_value == few.p_value
    assert many.high - many.low < few.high - few.low


def test_equal_arms_do_not_differ_but_keep_an_interval() -> None:
    same = np.array([True, False, True, True])
    comparison = compare_paired(same, same)
    assert comparison.difference == 0
    assert comparison.p_value == 1
    assert comparison.low < 0 < comparison.high


def test_the_pairing_narrows_the_interval() -> None:
    alike, unlike = compare_paired(*arms(40, 10, 0, 50)), compare_paired(*arms(0, 50, 40, 10))
    assert alike.difference == unlike.difference
    assert alike.high - alike.low < unlike.high - unlike.low


@given(outcomes)
def test_comparison_is_antisymmetric_and_contains_its_estimate(pair: np.ndarray) -> None:
    forward, back = compare_paired(pair[0], pair[1]), compare_paired(pair[1], pair[0])
    assert forward.low <= forward.difference <= forward.high
    assert forward.low >= -1 - 1e-12
    assert forward.high <= 1 + 1e-12
    assert forward.difference == -back.difference
    assert (forward.low, forward.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert forward.p_value == pytest.approx(back.p_value)
    assert 0 < forward.p_value <= 1


@given(outcomes, st.randoms(use_true_random=False))
def test_the_order_of_episodes_does_not_matter(pair: np.ndarray, random: object) -> None:
    order = list(range(pair.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert compare_paired(pair[0], pair[1]) == compare_paired(pair[0][order], pair[1][order])


def test_comparison_refuses_what_is_not_paired() -> None:
    good = np.array([True, False])
    with pytest.raises(ValueError, match="same episodes, not 2 and 3"):
        compare_paired(good, np.array([True, False, True]))
    for bad in (np.array([1.0, 0.0]), np.zeros((2, 1), dtype=bool), np.zeros(0, dtype=bool)):
        with pytest.raises(ValueError, match="b must be a non-empty bool array"):
            compare_paired(good, bad)


def test_difference_of_equal_spreads_has_students_interval() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0, 3.0])
    mean, low, high = difference_interval(a, b)
    half = 2.446911848791681 * np.sqrt(2 * (5 / 3) / 4)  # t of 6 degrees of freedom
    np.testing.assert_allclose((mean, low, high), (1.0, 1.0 - half, 1.0 + half))
    assert difference_interval(b, a) == pytest.approx((-1.0, -high, -low))


@pytest.mark.parametrize(("a", "b"), [([1.0], [0.0, 1.0]), ([1.0, 1.0], [0.0, 0.0])])
def test_difference_of_what_does_not_vary_says_nothing(a: list[float], b: list[float]) -> None:
    assert difference_interval(np.array(a), np.array(b)) == (np.mean(a) - np.mean(b), -np.inf, np.inf)


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_agrees_with_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

    p_values = [0.2, 0.001, 0.2, 0.9, 0.012, 0.0, 1.0, 0.03]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_of_nothing_and_of_one() -> None:
    assert holm([]) == []
    assert holm([0.2]) == pytest.approx([0.2])


@given(p_value_lists)
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    pairs = sorted(zip(p_values, corrected, strict=True))
    assert all(raw <= new <= min(1.0, len(pairs) * raw) + 1e-12 for raw, new in pairs)
    assert [new for _, new in pairs] == sorted(corrected)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_probability(bad: float) -> None:
    with pytest.raises(ValueError, match=f"within 0 and 1, not {bad}"):
        holm([0.5, bad])


class TestTimeToFailure:
    def test_it_is_the_inverse_of_the_rate_with_its_exact_interval(self) -> None:
        """Garwood (1936): of 10 events, the mean is within 4.795 and 18.390."""
        assert time_to_failure(100, 10) == pytest.approx((10, 100 / 18.390, 100 / 4.795), rel=1e-3)

    def test_what_never_failed_has_a_lower_bound(self) -> None:
        mean, low, high = time_to_failure(100, 0)
        assert (mean, high) == (np.inf, np.inf)
        assert low == pytest.approx(100 / 3.689, rel=1e-3)

    def test_it_covers_the_truth_as_often_as_it_says(self) -> None:
        counts = np.random.default_rng(0).poisson(100 / 20, size=400)
        covered = [low <= 20 <= high for _, low, high in (time_to_failure(100, int(k)) for k in counts)]
        assert np.mean(covered) >= 0.94

    def test_less_than_nothing(self) -> None:
        with pytest.raises(ValueError, match="at least 0"):
            time_to_failure(-1, 0)
