"""Where an attack may change pixels."""

import numpy as np
import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks import make_mask
from mrvlm_sim.metrics.attacks.regions import FreePatch, patch_places, patch_sums


def held(region: str, size: int = 200) -> np.ndarray:
    mask = make_mask(region)
    assert mask is not None
    return mask(size)


def test_everything() -> None:
    assert make_mask("frame") is None


@pytest.mark.parametrize(("place", "centre"), [("0,0", (0, 0)), ("0.5,-0.5", (0.5, -0.5)), ("1,1", (0.78, 0.78))])
def test_a_patch_of_5_percent_around_its_place(place: str, centre: tuple[float, float]) -> None:
    mask = held(f"patch@{place}")
    assert mask.mean() == pytest.approx(0.05, rel=0.03)
    rows, columns = np.nonzero(mask)
    middle = (2 * np.array([columns.mean(), rows.mean()]) + 1) / 200 - 1
    np.testing.assert_allclose(middle, centre, atol=0.015)


def test_rings_lie_in_each_other_and_share_nothing() -> None:
    disc, ring = held("ring@0-0.5"), held("ring@0.5-1")
    assert not (disc & ring).any()
    assert disc.mean() == pytest.approx(np.pi / 16, rel=0.01)
    assert (disc | ring).mean() == pytest.approx(np.pi / 4, rel=0.01)
    assert disc[100, 100]
    assert ring[100, 10]


@pytest.mark.parametrize(
    "region", ["", "patches", "patch@2,0", "patch@a,b", "ring@0.5-0.5", "ring@1-0", "ring@-1-1", "all"]
)
def test_what_is_no_region(region: str) -> None:
    with pytest.raises(UserError, match=r"a region is frame; patch, 5 %"):
        make_mask(region)


def test_a_patch_without_a_place_is_everywhere_until_it_has_one() -> None:
    mask = make_mask("patch")
    assert isinstance(mask, FreePatch)
    assert mask(100).all()
    mask.place = (0.5, -0.5)
    assert (mask(100) == held("patch@0.5,-0.5", 100)).all()
    assert make_mask("patch") is not mask, "every episode has its own"


def test_places_of_patches_reach_every_pixel() -> None:
    seen = np.sum([held(f"patch@{u:.6f},{v:.6f}") for u, v in patch_places()], axis=0)
    assert seen.min() >= 1
    values = np.zeros((200, 200))
    values[held("patch@0.194,0.194")] = 1
    u, v = patch_places()[int(patch_sums(values).argmax())]
    assert (u, v) == (pytest.approx(0.194, abs=0.01), pytest.approx(0.194, abs=0.01))
