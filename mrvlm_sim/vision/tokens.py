"""From frame to tokens: cut, average down, patchify. The same code runs on numpy arrays and torch tensors.

In torch every step is differentiable from the frame to the tokens, which is what attacks need.
"""

from typing import Any, TypeVar

import numpy as np
from einops import rearrange, reduce

from mrvlm_sim.vision.pyramid import Pyramid

Array = TypeVar("Array")  # numpy.ndarray or torch.Tensor


def cut(frame: Array, origins: np.ndarray, pyramid: Pyramid) -> list[Array]:
    """Views of one frame (frame_size, frame_size, 3): for each level (view, view, 3), the exact area mean.

    Floating-point frames give floating-point views; uint8 frames give float64 views in [0, 255]. A level without tokens
    gives a view without pixels.
    """
    views = []
    sizes = [size if view else 0 for size, view in zip(pyramid.cutout_sizes, pyramid.view_sizes, strict=True)]
    for (x, y), size, factor in zip(origins.tolist(), sizes, pyramid.factors, strict=True):
        cutout = frame[y : y + size, x : x + size]  # type: ignore[index]
        views.append(cutout if factor == 1 else _area_mean(cutout, factor))
    return views


def cut_batch(frame: Array, origins: np.ndarray, pyramid: Pyramid) -> list[Array]:
    """`cut` of one frame at K places at once: origins (K, levels, 2) to views (K, view, view, 3).

    Every level is averaged down once, and what the places show of it is gathered in one pass; where a level may lie
    between its own pixels, each place is cut by itself.
    """
    views: list[Any] = []
    for level, (view, factor) in enumerate(zip(pyramid.view_sizes, pyramid.factors, strict=True)):
        corners, rest = np.divmod(origins[:, level], factor)
        if rest.any() or pyramid.frame_size % factor:
            views.append(rearrange([cut(frame, place, pyramid)[level] for place in origins], "k h w c -> k h w c"))
            continue
        whole: Any = frame if factor == 1 else _area_mean(frame, factor)
        columns, rows = (corners[:, i, None] + np.arange(view) for i in (0, 1))
        views.append(whole[rows[:, :, None], columns[:, None, :]])
    return views


def _area_mean(image: Array, factor: int) -> Array:
    if not isinstance(image, np.ndarray):
        return _area_mean_of_tensor(image, factor)
    if image.dtype == np.uint8:
        return _area_mean_of_integers(image, factor)  # type: ignore[return-value]
    return reduce(image, "(h f) (w g) c -> h w c", _accurate_mean, f=factor, g=factor)


def _area_mean_of_tensor(image: Any, factor: int) -> Any:
    """Half the time, forward and backward, of a mean over two axes."""
    from torch.nn.functional import avg_pool2d

    return rearrange(avg_pool2d(rearrange(image, "h w c -> c h w"), factor), "c h w -> h w c")


def _accurate_mean(image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """numpy adds float32 along several axes one by one; over thousands of pixels that costs digits."""
    return image.mean(axis=axes, dtype=np.float64).astype(image.dtype)


def _area_mean_of_integers(image: np.ndarray, factor: int) -> np.ndarray:
    """Sums of whole strided images: exact, and several times faster than a mean of floats."""
    rows = np.zeros((image.shape[0] // factor, *image.shape[1:]), np.uint32)
    for i in range(factor):
        rows += image[i::factor]
    columns = np.zeros((rows.shape[0], rows.shape[1] // factor, 3), np.uint32)
    for i in range(factor):
        columns += rows[:, i::factor]
    return columns / factor**2


def quantise(view: np.ndarray) -> np.ndarray:
    """Views in [0, 255] rounded to uint8, as a camera would deliver them."""
    return view if view.dtype == np.uint8 else np.rint(view).astype(np.uint8)


def patchify(views: list[Array], patch: int) -> list[Array]:
    """Views (..., view, view, 3) as tokens (..., grid * grid, patch * patch * 3), row by row, per level."""
    return [rearrange(v, "... (y p) (x q) c -> ... (y x) (p q c)", p=patch, q=patch) for v in views]


def unpatchify(tokens: Array, pyramid: Pyramid) -> list[Array]:
    """The inverse of `patchify` on the concatenated tokens (..., tokens, patch * patch * 3)."""
    views, start = [], 0
    for grid in pyramid.grids:
        level = tokens[..., start : start + grid**2, :]  # type: ignore[index]
        views.append(
            rearrange(level, "... (y x) (p q c) -> ... (y p) (x q) c", y=grid, x=grid, p=pyramid.patch, q=pyramid.patch)
        )
        start += grid**2
    return views


def tokenise(views: list[np.ndarray], pyramid: Pyramid) -> np.ndarray:
    """Views of one frame as the token observation, uint8 (tokens, patch * patch * 3)."""
    return np.concatenate(patchify([quantise(view) for view in views], pyramid.patch))


def shown_in(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which tokens (..., N, 4) show which points of the frame (..., K, 2): bool (..., K, N); NaN is nowhere."""
    centres, halves = boxes[..., None, :, :2], boxes[..., None, :, 2:3]
    return (np.abs(places[..., :, None, :] - centres) <= halves).all(axis=-1)
