"""The marks of `read_mark`: pictures that differ in their shape alone, as the letters of an eye chart do.

Every mark is drawn with one round pen, one fifth of the mark's height wide: the stroke of Sloan letters (Sloan, "New
test charts for the measurement of visual acuity at far and near distances", 1959) and of Landolt rings (ISO 8596).
All are equally high, and their widths (of the star, its inner radius) make them equally black, so that a blurred mark
cannot be told by its greyness (as with LEA symbols: Hyvarinen et al., "New visual acuity test for pre-school
children", 1980). `python -m mrvlm_sim.tasks.optotypes FOLDER` writes them as PNG files.
"""

import sys
from itertools import pairwise
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

Path2D = list[tuple[float, float]]

SHAPES = ("circle", "triangle", "star", "cross")
DIGITS = ("two", "four", "five", "seven")
MARKS = (*SHAPES, *DIGITS)
PIXELS = 256  # of a picture; a power of two halves exactly down to the smallest of the mip maps
HEIGHT, CANVAS = 5.0, 8.0  # of a mark and of its picture, in widths of the stroke
CANVAS_SHARE = CANVAS / HEIGHT  # how much larger than its mark a picture is


def picture(mark: str) -> np.ndarray:
    """The mark in black on white, uint8 (PIXELS, PIXELS)."""
    scale = PIXELS / CANVAS
    centres = (np.arange(PIXELS) + 0.5) / scale - CANVAS / 2
    points = np.stack(np.meshgrid(centres, -centres), axis=-1)
    distance = np.min([_distance(points, np.array(path)) for path in _skeleton(mark)], axis=0)
    ink = np.clip((0.5 - distance) * scale + 0.5, 0, 1)
    return np.round(255 * (1 - ink)).astype(np.uint8)


def write(folder: Path) -> None:
    """One PNG file for each mark."""
    for mark in MARKS:
        imageio.imwrite(folder / f"{mark}.png", picture(mark))


def _distance(points: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Distance of the points (H, W, 2) from a path of straight pieces (N, 2)."""
    nearest = np.full(points.shape[:2], np.inf)
    for start, end in pairwise(path):
        along = (points - start) @ (end - start) / ((end - start) @ (end - start))
        foot = start + np.clip(along, 0, 1)[..., None] * (end - start)
        nearest = np.minimum(nearest, np.linalg.norm(points - foot, axis=-1))
    return nearest


def _skeleton(mark: str) -> list[Path2D]:
    """The way of the pen's centre, in widths of the stroke: from -2 to 2 upwards, x to the right."""
    if mark == "star":
        return [_star(0.179)]
    half_width, paths = {
        "circle": (2.0, [_arc(0, 0, 1, 2, 0, 360)]),
        "triangle": (2.049, [[(-1.0, -2.0), (1.0, -2.0), (0.0, 2.0), (-1.0, -2.0)]]),
        "cross": (2.237, [[(-1.0, -2.0), (1.0, 2.0)], [(-1.0, 2.0), (1.0, -2.0)]]),
        "two": (1.723, [[*_arc(0, 0.9, 1, 1.1, 165, -35), (-1.0, -2.0), (1.0, -2.0)]]),
        "four": (2.428, [[(0.45, -2.0), (0.45, 2.0), (-1.0, -0.9), (1.0, -0.9)]]),
        "five": (1.641, [[(0.8, 2.0), (-0.7, 2.0), (-0.85, 0.15), *_arc(0, -0.65, 1, 1.35, 125, -145)]]),
        "seven": (2.162, [[(-1.0, 2.0), (1.0, 2.0), (-0.4, -2.0)], [(-0.6, 0.0), (0.85, 0.0)]]),
    }[mark]
    return [[(half_width * x, y) for x, y in path] for path in paths]


def _arc(x: float, y: float, width: float, height: float, start: float, end: float) -> Path2D:
    """Part of an ellipse about (x, y) with these half axes, between two angles in degrees."""
    angles = np.radians(np.linspace(start, end, 97))
    return [(x + width * float(np.cos(angle)), y + height * float(np.sin(angle))) for angle in angles]


def _star(inner: float) -> Path2D:
    """Five points; `inner` is the radius between them as a share of that of the points."""
    radius = 4 / (1 + np.cos(np.pi / 5))  # so that it is 4 high
    corners = [(radius * (inner if i % 2 else 1), np.pi / 2 + i * np.pi / 5) for i in range(11)]
    return [(float(r * np.cos(angle)), float(r * np.sin(angle) + 2 - radius)) for r, angle in corners]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
