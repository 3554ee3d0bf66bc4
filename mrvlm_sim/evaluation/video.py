"""Pictures of what happens: the scene beside what the policy sees."""

import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

import imageio.v3 as iio
import numpy as np

from mrvlm_sim.vision import quantise
from mrvlm_sim.wrappers import MultiResolutionTokens

FPS = 10
GAP = 8  # pixels between pictures
GRID_COLOUR = np.array([255, 255, 255], np.uint8)
LEVEL_COLOURS = np.array([[255, 255, 255], [255, 160, 0], [230, 0, 126], [0, 200, 255]], np.uint8)


class EpisodeVideo:
    """Collects one picture per step, `height` pixels high, and writes an MP4 when closed.

    What goes wrong with a film is a warning: it must not cost the episode.
    """

    def __init__(self, path: Path, height: int = 360) -> None:
        self.path, self.height = path, height
        self.pictures: list[np.ndarray] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.write()
        except Exception as problem:
            warnings.warn(f"no film {self.path}: {problem}", stacklevel=2)

    def add(self, wrapped: MultiResolutionTokens) -> None:
        scene = wrapped.renderer.picture("scene", width=self.height * 4 // 3, height=self.height)
        self.pictures.append(side_by_side([scene, *view_pictures(wrapped, self.height)]))

    def write(self) -> None:
        """Write what was collected, if anything was."""
        if self.pictures:
            write_video(self.path, self.pictures)


def write_video(path: Path, pictures: list[np.ndarray]) -> None:
    """H.264, 10 pictures per second; all (H, W, 3) of one size, odd sizes are cut by one pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (side - side % 2 for side in pictures[0].shape[:2])
    iio.imwrite(path, np.stack(pictures)[:, :height, :width], plugin="pyav", codec="libx264", fps=FPS)


def view_pictures(wrapped: MultiResolutionTokens, height: int) -> list[np.ndarray]:
    """Every view of every camera as the policy saw it last, with token grid, `height` pixels high."""
    pictures = []
    for camera, views in wrapped.views.items():
        pyramid = wrapped.pyramids[camera]
        for level, (view, grid) in enumerate(zip(views, pyramid.grids, strict=True)):
            if grid == 0:
                continue
            picture = draw_grid(enlarge(quantise(view), height), grid)
            pictures.append(draw_border(picture, LEVEL_COLOURS[level % len(LEVEL_COLOURS)]))
    return pictures


def enlarge(image: np.ndarray, height: int) -> np.ndarray:
    """Nearest-neighbour scaling of a square image to height x height."""
    index = np.arange(height) * image.shape[0] // height
    return image[index][:, index]


def draw_grid(image: np.ndarray, grid: int) -> np.ndarray:
    """A half-transparent grid of grid x grid cells over a square image."""
    image = image.copy()
    lines = np.arange(1, grid) * image.shape[0] // grid
    image[lines] = image[lines] // 2 + GRID_COLOUR // 2
    image[:, lines] = image[:, lines] // 2 + GRID_COLOUR // 2
    return image


def draw_border(image: np.ndarray, colour: np.ndarray, width: int = 4) -> np.ndarray:
    """A border inside the image."""
    image = image.copy()
    for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        image[edge] = colour
    return image


def draw_boxes(frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The outlines of boxes (L, 3) = u, v, h on a square frame, in the colours of their levels."""
    frame, size = frame.copy(), frame.shape[0]
    for level, (u, v, h) in enumerate(boxes):
        x0, x1, y0, y1 = (round((c + s * h + 1) / 2 * size) for c in (u, v) for s in (-1, 1))
        cutout = frame[y0:y1, x0:x1]
        cutout[:] = draw_border(cutout, LEVEL_COLOURS[level % len(LEVEL_COLOURS)], width=max(2, size // 200))
    return frame


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of equal height in one row on white."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)
