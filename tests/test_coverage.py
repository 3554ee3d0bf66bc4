"""What jitter shows of the frame: never more than the closed form allows, and all of that in the long run."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import pyramids
from hypothesis import given, settings
from hypothesis import strategies as st

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.coverage import age_table, cover, coverage_table, draw_coverage, other_jitter
from mrvlm_sim.metrics.coverage import ages, bound, seen, share_seen, watch
from mrvlm_sim.vision import Jitter, Pyramid

STILL = Pyramid(frame_size=256, patch=16, grids=(4, 4, 4))
SEEDS = st.integers(0, 2**32 - 1)
ONE_CELL = 2 / 128  # of the frame's width, on both sides of a region


def jittered(**jitter: float) -> Pyramid:
    return STILL.model_copy(update={"jitter": Jitter(**jitter)})


def test_a_box_covers_its_own_part_of_the_frame() -> None:
    covered = seen(np.array([0.5, -0.5, 0.5]), cells=8)  # right and up
    assert covered[:4, 4:].all()
    assert covered.sum() == 16


def test_without_jitter_nothing_is_added_and_nothing_grows_old() -> None:
    boxes = watch(STILL, 5, 3, np.random.default_rng(0))
    assert (share_seen(boxes) == np.array([1, 1 / 4, 1 / 16])).all()
    assert bound(STILL) == pytest.approx([1, 1 / 4, 1 / 16])
    age = ages(boxes, level=2)
    assert np.isfinite(age).mean() == 1 / 16
    assert set(np.unique(age)) == {0.0, np.inf}


@settings(max_examples=25)
@given(pyramids(max_frame=300), SEEDS)
def test_shares_grow_and_stay_below_the_bound(pyramid: Pyramid, seed: int) -> None:
    shares = share_seen(watch(pyramid, 12, 2, np.random.default_rng(seed)))
    assert (np.diff(shares, axis=1) >= 0).all()  # with time
    assert (np.diff(shares, axis=2) <= 0).all()  # with resolution
    assert (shares <= (np.sqrt(bound(pyramid)) + ONE_CELL) ** 2).all()


def test_in_the_long_run_the_bound_is_reached() -> None:
    pyramid = jittered(tremor=0.25)
    shares = share_seen(watch(pyramid, 3000, 1, np.random.default_rng(0)))[0, -1]
    assert shares[1] > 0.9 * bound(pyramid)[1]


def test_faster_components_show_more() -> None:
    tremor, drift = (cover(jittered(**sizes), 20, runs=20) for sizes in ({"tremor": 0.2}, {"drift": 0.2}))
    assert tremor.shares[:, -1, 1].mean() > drift.shares[:, -1, 1].mean() > 1 / 4


def test_ages_count_looks_since() -> None:
    boxes = np.array([[[[-0.5, -0.5, 0.5]], [[0.5, -0.5, 0.5]], [[0.5, -0.5, 0.5]]]])  # left, then right twice
    age = ages(boxes, level=0, cells=4)[0]
    assert (age[0] == [2, 2, 0, 0]).all()
    assert np.isinf(age[3]).all()


def test_tables_and_picture(tmp_path: Path) -> None:
    coverage = cover(jittered(tremor=0.1, saccade=0.2), 12, runs=8)
    table = coverage_table(coverage)
    assert table["sensor px per view px"].tolist() == ["4", "2", "1"]
    assert list(table)[2:-1] == [f"% after {m} look{'s' * (m > 1)}" for m in (1, 2, 5, 10, 12)]
    assert table["% after 1 look"][2] == "6.2 [6.2, 6.2]"
    assert age_table(coverage)["seen sharply"][0].endswith("%")
    draw_coverage(coverage, tmp_path / "new" / "coverage.png")
    assert iio.imread(tmp_path / "new" / "coverage.png").std() > 10


def test_jitter_can_be_replaced_piece_by_piece() -> None:
    pyramid = jittered(tremor=0.1, drift=0.2)
    assert other_jitter(pyramid, tremor=None, drift=0.3, saccade=None).jitter == Jitter(tremor=0.1, drift=0.3)
    with pytest.raises(UserError, match="--drift must be between 0 and 1"):
        other_jitter(pyramid, drift=1.5)


def test_the_same_seed_gives_the_same_figures() -> None:
    one, again, other = (cover(jittered(tremor=0.1), 5, seed, runs=3) for seed in (1, 1, 2))
    assert (one.shares == again.shares).all()
    assert (one.ages == again.ages).all()
    assert (one.ages != other.ages).any()
