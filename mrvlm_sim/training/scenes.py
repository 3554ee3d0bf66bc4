"""Many scenes, each seen once with margins: rendered by several processes, cut with fresh jitter whenever asked for."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mrvlm_sim.sim.camera import Renderer
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.sim.sight import landmark_places
from mrvlm_sim.training.pool import in_order
from mrvlm_sim.training.views import MarginViews, margin_boxes, training_gaze
from mrvlm_sim.vision import Pyramid

PART = 100  # scenes that a process renders at a time
Known = dict[str, np.ndarray]  # of every scene, by name; <camera>/places and <camera>/<level> are for the views


def render_scenes(
    cameras: Mapping[str, Pyramid], count: int, render: Callable[[np.ndarray], Known], workers: int
) -> tuple[dict[str, MarginViews], Known]:
    """The views that `render` finds in the scenes 0 to `count`, and what else; it is asked for some scenes at a time.

    Without workers, all is done in this process.
    """
    parts = np.array_split(np.arange(count), max(1, count // PART))
    known: Known = {}
    for part, rendered in zip(parts, in_order(render, parts, workers), strict=True):
        for name, values in rendered.items():
            if name not in known:
                known[name] = np.empty((count, *values.shape[1:]), values.dtype)
            known[name][part] = values
    return {camera: _taken(known, camera, pyramid) for camera, pyramid in cameras.items()}, known


def _taken(known: Known, camera: str, pyramid: Pyramid) -> MarginViews:
    levels = [known.pop(f"{camera}/{level}") for level in range(pyramid.levels)]
    return MarginViews(pyramid, levels, known.pop(f"{camera}/places"), known.pop(f"{camera}/gazes", None))


def look_around(
    scene: Scene, renderer: Renderer, cameras: Mapping[str, Pyramid], landmarks: np.ndarray, rng: np.random.Generator
) -> Known:
    """What is before the cameras now, with margins, and where the landmarks (K, 3), from the fingertips, appear."""
    known: Known = {}
    for camera, pyramid in cameras.items():
        places = known[f"{camera}/places"] = landmark_places(scene, camera, landmarks)
        gaze = training_gaze(pyramid, places, rng, first=False)
        if gaze is not None:
            known[f"{camera}/gazes"] = gaze
        for level, view in enumerate(renderer.views(camera, *margin_boxes(pyramid, gaze))):
            known[f"{camera}/{level}"] = view
    return known


def stack(known: Sequence[Known]) -> Known:
    """Of several scenes, as one array for every name."""
    return {name: np.stack([one[name] for one in known]) for name in known[0]}
