"""Where in the frame an attack may change pixels."""

import re
from functools import lru_cache

import numpy as np

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.base import Mask

NUMBER = r"-?\d*\.?\d+"
PATCH = re.compile(rf"patch@({NUMBER}),({NUMBER})")
RING = re.compile(rf"ring@({NUMBER})-({NUMBER})")
PATCH_AREA = 0.05  # of the frame
FORMS = "frame; patch@U,V, a square of 5 % of the frame around that point; or ring@A-B, so far from the middle"


def make_mask(region: str) -> Mask | None:
    """Which pixels a region holds; None: all.

    Frame coordinates, from -1 to 1: `patch@0.5,-0.5` lies up right, `ring@0-0.5` is the disc half as wide as the frame.

    Raises:
        UserError: it is none of these forms, or holds nothing.
    """
    if region == "frame":
        return None
    if found := PATCH.fullmatch(region):
        u, v = map(float, found.groups())
        if max(abs(u), abs(v)) <= 1:
            return lambda size: _patch(size, u, v)
    if found := RING.fullmatch(region):
        inner, outer = map(float, found.groups())
        if 0 <= inner < outer and _ring(256, inner, outer).any():
            return lambda size: _ring(size, inner, outer)
    raise UserError(f"a region is {FORMS} (in half-widths of the frame, the second further out), not {region!r}")


@lru_cache
def _patch(size: int, u: float, v: float) -> np.ndarray:
    """As near to its place as it can be inside the frame."""
    side = max(1, round(size * PATCH_AREA**0.5))
    x, y = (int(np.clip(round((place + 1) / 2 * size - side / 2), 0, size - side)) for place in (u, v))
    mask = np.zeros((size, size), bool)
    mask[y : y + side, x : x + side] = True
    return mask


@lru_cache
def _ring(size: int, inner: float, outer: float) -> np.ndarray:
    centres = (2 * np.arange(size) + 1) / size - 1
    eccentricity = np.hypot(centres[:, None], centres[None, :])
    return (eccentricity >= inner) & (eccentricity < outer)
