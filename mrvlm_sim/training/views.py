"""The views of demonstrations, rendered once with a margin: any jittered box is then a slice, new every epoch."""

import hashlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from mrvlm_sim.errors import UserError
from mrvlm_sim.seeding import generator
from mrvlm_sim.sim.sight import landmark_places
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training.demos import Demonstrations
from mrvlm_sim.training.pool import in_order
from mrvlm_sim.vision import Pyramid, patchify, shown_in
from mrvlm_sim.wrappers.gaze import gaze_at

RENDERING = "3"  # raise when the look of the scenes changes, so that older caches are not used


GAZE_ERROR = 0.2  # at most, in half-widths of the frame, of the gaze that a policy learns with
Shapes = dict[str, tuple[tuple[int, ...], type]]


def kept_frames(demos: Demonstrations, stride: int) -> np.ndarray:
    """Indices of the frames that are rendered and trained on, int64: one in `stride`.

    Frames that follow each other look much alike, and many episodes matter more than every frame.
    """
    step = np.arange(len(demos.episode)) - np.searchsorted(demos.episode, demos.episode)
    return np.flatnonzero(step % stride == demos.episode % stride)


class Look(NamedTuple):
    """What a network sees of B frames through one camera."""

    tokens: np.ndarray  # uint8 (B, N, patch*patch*3)
    boxes: np.ndarray  # float32 (B, N, 4), as it is told them
    shown: np.ndarray  # bool (B, K, N): which tokens show which landmark


class MarginViews:
    """Every level of one camera over K frames: uint8 (K, view + 2 margin, view + 2 margin, 3), perhaps on disk.

    `places` (K, landmarks, 2) says where landmarks are in the frame, and `gazes` (K, 2) what the eyes were turned to,
    if not straight ahead.
    """

    def __init__(
        self, pyramid: Pyramid, levels: list[np.ndarray], places: np.ndarray, gazes: np.ndarray | None = None
    ) -> None:
        self.pyramid, self.levels, self.places, self.gazes = pyramid, levels, places, gazes
        self.margins = margins(pyramid)

    @property
    def looks_for_what_is_named(self) -> bool:
        """Whether the gaze is on the thing that is named, so that naming another would mislead."""
        return self.pyramid.gaze in ("oracle", "policy")

    def look(self, frames: np.ndarray, rng: np.random.Generator) -> Look:
        """Freshly jittered views of some of the frames (B,)."""
        pyramid = self.pyramid
        offsets = pyramid.jitter.stationary(rng, (len(frames), pyramid.levels, 2))
        gazes = None if self.gazes is None else self.gazes[frames]
        origins = pyramid.place(offsets, gazes)
        steps = (origins - pyramid.place(np.zeros_like(offsets), gazes)) // np.array(pyramid.factors)[:, None]
        parts = []
        for level, (view, margin) in enumerate(zip(pyramid.view_sizes, self.margins, strict=True)):
            if view == 0:
                continue
            corners = (steps[:, level] + margin).tolist()
            stored = self.levels[level]
            cuts = [stored[f, y : y + view, x : x + view] for f, (x, y) in zip(frames, corners, strict=True)]
            parts.append(patchify([np.stack(cuts)], pyramid.patch)[0])
        shown = shown_in(self.places[frames], pyramid.token_boxes(origins))
        return Look(np.concatenate(parts, axis=1), pyramid.told_boxes(origins), shown)


def margins(pyramid: Pyramid) -> list[int]:
    """Width of each level's margin in view pixels: how far jitter can move its cutout.

    It moves it farthest from where there is no room on the other side, which is where a gaze into a corner puts it.
    """
    offsets = np.full((pyramid.levels, 2), pyramid.jitter.amplitude)
    gazes = [None] if pyramid.gaze == "centre" else [np.full(2, corner) for corner in (-1.0, 0.0, 1.0)]
    moves = [
        np.abs(pyramid.place(way * offsets, gaze) - pyramid.place(0 * offsets, gaze))[:, 0]
        for gaze in gazes
        for way in (-1, 1)
    ]
    reach = np.max(moves, axis=0)
    if pyramid.gaze != "centre" and pyramid.jitter.amplitude > 0:  # between those, rounding adds a pixel at every level
        reach[1:] += np.cumsum(pyramid.factors[1:], dtype=np.int64)
    broken = np.flatnonzero(reach % pyramid.factors)
    if len(broken):
        rule = f"level {broken[0]} must move by whole pixels of its own view for its jitter to be cut from a margin"
        raise UserError(f"{rule}; its parents' factors must be multiples of its own, they are {pyramid.factors}")
    return (reach // pyramid.factors).tolist()


def margin_boxes(pyramid: Pyramid, gaze: np.ndarray | None = None) -> tuple[np.ndarray, list[int]]:
    """Boxes (levels, 3) and widths in pixels of the views with their margins; no pixels where there are no tokens."""
    views = pyramid.view_sizes
    sizes = [view + 2 * margin if view else 0 for view, margin in zip(views, margins(pyramid), strict=True)]
    boxes = pyramid.boxes(pyramid.place(np.zeros((pyramid.levels, 2)), gaze))
    boxes[:, 2] *= np.array(sizes) / np.maximum(views, 1)
    return boxes, sizes


def training_gaze(pyramid: Pyramid, places: np.ndarray, rng: np.random.Generator, first: bool) -> np.ndarray | None:
    """Where the eyes are turned to while a network learns, in a frame with landmarks at `places` (K, 2).

    A policy that learns to choose its gaze sees as if it had looked about where it should have; in the first frame of
    an episode, straight ahead.
    """
    match pyramid.gaze:
        case "random":
            return rng.uniform(-1, 1, 2)
        case "oracle":
            return gaze_at(places)
        case "policy":
            return np.zeros(2) if first else np.clip(gaze_at(places) + rng.uniform(-GAZE_ERROR, GAZE_ERROR, 2), -1, 1)
    return None


def render_views(
    demos: Demonstrations, camera: str, pyramid: Pyramid, stride: int, cache: Path, workers: int
) -> tuple[MarginViews, np.ndarray]:
    """Render the kept frames of the demonstrations through one camera, or take them from the cache.

    Also returns where the landmarks are in every frame, kept or not: float32 (F, K, 2).
    """
    kept = kept_frames(demos, stride)
    folder = cache / _fingerprint(demos, camera, pyramid, kept)
    cache.mkdir(parents=True, exist_ok=True)
    shapes = _shapes(demos, pyramid, len(kept))
    with FileLock(cache / f".{folder.name}.lock"):  # arms with the same eyes may be trained side by side
        _fill(folder, demos, camera, pyramid, kept, shapes, workers)
    found = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    levels = [found[f"{level}"] for level in range(pyramid.levels)]
    return MarginViews(pyramid, levels, found["places"][kept], found.get("gazes")), found["places"]


def _shapes(demos: Demonstrations, pyramid: Pyramid, kept: int) -> Shapes:
    """What is kept of the views, by the files' names."""
    shapes: Shapes = {
        f"{level}": ((kept, size, size, 3), np.uint8) for level, size in enumerate(margin_boxes(pyramid)[1])
    }
    shapes["places"] = (*demos.landmarks.shape[:2], 2), np.float32
    return shapes if pyramid.gaze == "centre" else shapes | {"gazes": ((kept, 2), np.float64)}


def _fill(
    folder: Path,
    demos: Demonstrations,
    camera: str,
    pyramid: Pyramid,
    kept: np.ndarray,
    shapes: Shapes,
    workers: int,
) -> None:
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, (shape, kind) in shapes.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
        parts = np.array_split(np.unique(demos.episode), workers)
        for _ in in_order(partial(_render_part, demos, camera, pyramid, kept, folder, [*shapes]), parts, workers):
            pass
        (folder / "complete").touch()


def _render_part(
    demos: Demonstrations,
    camera: str,
    pyramid: Pyramid,
    kept: np.ndarray,
    folder: Path,
    names: Sequence[str],
    episodes: np.ndarray,
) -> None:
    env = make_own_env(demos.environment)
    files = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in names}
    number = {frame: index for index, frame in enumerate(kept.tolist())}
    for episode in episodes:
        env.reset(seed=int(demos.reset_seeds[episode]))
        frames = np.flatnonzero(demos.episode == episode).tolist()
        for frame in frames:
            demos.restore(env, frame)
            places = files["places"][frame] = landmark_places(env.scene, camera, demos.landmarks[frame])
            if (index := number.get(frame)) is None:
                continue
            rng = generator(demos.seed, demos.environment, frame, "training gaze")
            gaze = training_gaze(pyramid, places, rng, first=frame == frames[0])
            if gaze is not None:
                files["gazes"][index] = gaze
            for level, view in enumerate(env.renderer.views(camera, *margin_boxes(pyramid, gaze))):
                files[f"{level}"][index] = view
    env.close()


def _fingerprint(demos: Demonstrations, camera: str, pyramid: Pyramid, kept: np.ndarray) -> str:
    described = f"{RENDERING} {demos.environment} {camera} {pyramid.model_dump_json(exclude={'told'})}".encode()
    if pyramid.gaze != "centre":
        described += str(margins(pyramid)).encode()
    return hashlib.sha256(described + demos.states[kept].tobytes()).hexdigest()[:16]
