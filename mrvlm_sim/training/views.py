"""The views of demonstrations, rendered once with a margin: any jittered box is then a slice, new every epoch."""

import hashlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from filelock import FileLock

from mrvlm_sim.errors import UserError
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training.demos import Demonstrations
from mrvlm_sim.vision import Pyramid, patchify

RENDERING = "2"  # raise when the look of the scenes changes, so that older caches are not used


def kept_frames(demos: Demonstrations, stride: int) -> np.ndarray:
    """Indices of the frames that are rendered and trained on, int64: one in `stride`.

    Frames that follow each other look much alike, and many episodes matter more than every frame.
    """
    step = np.arange(len(demos.episode)) - np.searchsorted(demos.episode, demos.episode)
    return np.flatnonzero(step % stride == demos.episode % stride)


class MarginViews:
    """Every level of one camera over the kept frames: uint8 (K, view + 2 margin, view + 2 margin, 3) on disk."""

    def __init__(self, pyramid: Pyramid, levels: list[np.ndarray]) -> None:
        self.pyramid, self.levels = pyramid, levels
        self.margins = margins(pyramid)

    def tokens(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Freshly jittered tokens uint8 (B, N, patch*patch*3) and boxes float32 (B, N, 4) of kept frames (B,).

        `frames` count within `kept_frames`.
        """
        pyramid = self.pyramid
        origins = pyramid.place(pyramid.jitter.stationary(rng, (len(frames), pyramid.levels, 2)))
        steps = (origins - pyramid.centred()) // np.array(pyramid.factors)[:, None]
        parts = []
        for level, (view, margin) in enumerate(zip(pyramid.view_sizes, self.margins, strict=True)):
            corners = (steps[:, level] + margin).tolist()
            stored = self.levels[level]
            cuts = [stored[f, y : y + view, x : x + view] for f, (x, y) in zip(frames, corners, strict=True)]
            parts.append(patchify([np.stack(cuts)], pyramid.patch)[0])
        return np.concatenate(parts, axis=1), pyramid.token_boxes(origins)


def margins(pyramid: Pyramid) -> list[int]:
    """Width of each level's margin in view pixels: how far jitter can move its cutout."""
    offsets = np.full((pyramid.levels, 2), pyramid.jitter.amplitude)
    moves = [np.abs(pyramid.place(way * offsets) - pyramid.centred())[:, 0] for way in (-1, 1)]
    reach = np.maximum(*moves)
    broken = np.flatnonzero(reach % pyramid.factors)
    if len(broken):
        rule = f"level {broken[0]} must move by whole pixels of its own view for its jitter to be cut from a margin"
        raise UserError(f"{rule}; its parents' factors must be multiples of its own, they are {pyramid.factors}")
    return (reach // pyramid.factors).tolist()


def margin_boxes(pyramid: Pyramid) -> tuple[np.ndarray, list[int]]:
    """Boxes (levels, 3) and widths in pixels of the views with their margins."""
    sizes = [view + 2 * margin for view, margin in zip(pyramid.view_sizes, margins(pyramid), strict=True)]
    boxes = pyramid.boxes(pyramid.centred())
    boxes[:, 2] *= np.array(sizes) / np.array(pyramid.view_sizes)
    return boxes, sizes


def render_views(
    demos: Demonstrations, camera: str, pyramid: Pyramid, stride: int, cache: Path, workers: int
) -> MarginViews:
    """Render the kept frames of the demonstrations through one camera, or take them from the cache."""
    kept = kept_frames(demos, stride)
    folder = cache / _fingerprint(demos, camera, pyramid, kept)
    cache.mkdir(parents=True, exist_ok=True)
    _, sizes = margin_boxes(pyramid)
    shapes = [(len(kept), size, size, 3) for size in sizes]
    with FileLock(cache / f".{folder.name}.lock"):  # arms with the same eyes may be trained side by side
        _fill(folder, demos, camera, pyramid, kept, shapes, workers)
    return MarginViews(pyramid, [np.load(folder / f"{level}.npy", mmap_mode="r") for level in range(pyramid.levels)])


def _fill(
    folder: Path,
    demos: Demonstrations,
    camera: str,
    pyramid: Pyramid,
    kept: np.ndarray,
    shapes: Sequence[tuple[int, ...]],
    workers: int,
) -> None:
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for level, shape in enumerate(shapes):
            np.lib.format.open_memmap(folder / f"{level}.npy", mode="w+", dtype=np.uint8, shape=shape)
        parts = np.array_split(np.unique(demos.episode), workers)
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_render_part, demos, camera, pyramid, kept, folder, part) for part in parts]
            for job in jobs:
                job.result()
        (folder / "complete").touch()


def _render_part(
    demos: Demonstrations, camera: str, pyramid: Pyramid, kept: np.ndarray, folder: Path, episodes: np.ndarray
) -> None:
    env = make_own_env(demos.environment)
    boxes, sizes = margin_boxes(pyramid)
    files = [np.load(folder / f"{level}.npy", mmap_mode="r+") for level in range(pyramid.levels)]
    for episode in episodes:
        env.reset(seed=int(demos.reset_seeds[episode]))
        for index in np.flatnonzero(demos.episode[kept] == episode).tolist():
            demos.restore(env, int(kept[index]))
            for file, view in zip(files, env.renderer.views(camera, boxes, sizes), strict=True):
                file[index] = view
    env.close()


def _fingerprint(demos: Demonstrations, camera: str, pyramid: Pyramid, kept: np.ndarray) -> str:
    described = f"{RENDERING} {demos.environment} {camera} {pyramid.model_dump_json()}".encode()
    return hashlib.sha256(described + demos.states[kept].tobytes()).hexdigest()[:16]
