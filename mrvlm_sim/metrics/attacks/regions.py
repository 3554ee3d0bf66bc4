"""Where in the frame an attack may change pixels."""

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from mrvlm_sim.errors import UserError

Mask = Callable[[int], np.ndarray]  # width of the frame -> bool (S, S), which pixels may be changed
NUMBER = r"-?\d*\.?\d+"
PATCH = re.compile(rf"patch@({NUMBER}),({NUMBER})")
RING = re.compile(rf"ring@({NUMBER})-({NUMBER})")
PATCH_AREA = 0.05  # of the frame
GRID = 9  # places along each side where a patch may go that chooses its place
FORMS = "frame; patch, 5 % of it where the attack likes; patch@U,V, there; or ring@A-B, so far from the middle"


def make_mask(region: str) -> Mask | None:
    """Which pixels a region holds; None: all.

    Frame coordinates, from -1 to 1: `patch@0.5,-0.5` lies up right, `ring@0-0.5` is the disc half as wide as the frame.

    Raises:
        UserError: it is none of these forms, or holds nothing.
    """
    if region == "frame":
        return None
    if region == "patch":
        return FreePatch()
    if found := PATCH.fullmatch(region):
        u, v = map(float, found.groups())
        if max(abs(u), abs(v)) <= 1:
            return lambda size: _patch(size, u, v)
    if found := RING.fullmatch(region):
        inner, outer = map(float, found.groups())
        if 0 <= inner < outer and _ring(256, inner, outer).any():
            return lambda size: _ring(size, inner, outer)
    raise UserError(f"a region is {FORMS} (in half-widths of the frame, the second further out), not {region!r}")


class FreePatch:
    """A square of 5 % of the frame at a `place` (u, v) that the attack chooses in its first look."""

    place: tuple[float, float] | None = None

    def __call__(self, size: int) -> np.ndarray:
        return np.ones((size, size), bool) if self.place is None else _patch(size, *self.place)


@lru_cache
def _patch(size: int, u: float, v: float) -> np.ndarray:
    """As near to its place as it can be inside the frame."""
    side = max(1, round(size * PATCH_AREA**0.5))
    x, y = (int(np.clip(round((place + 1) / 2 * size - side / 2), 0, size - side)) for place in (u, v))
    mask = np.zeros((size, size), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def patch_places() -> list[tuple[float, float]]:
    """A grid (u, v) of places for a patch, from edge to edge."""
    along = (1 - PATCH_AREA**0.5) * np.linspace(-1, 1, GRID)
    return [(float(u), float(v)) for v in along for u in along]


def patch_sums(values: np.ndarray) -> np.ndarray:
    """The sum of values (S, S) in the patch at each of those places."""
    return np.array([values[_patch(values.shape[0], u, v)].sum() for u, v in patch_places()])


@lru_cache
def _ring(size: int, inner: float, outer: float) -> np.ndarray:
    centres = (2 * np.arange(size) + 1) / size - 1
    eccentricity = np.hypot(centres[:, None], centres[None, :])
    return (eccentricity >= inner) & (eccentricity < outer)
