"""How much of the frame a jittered pyramid sees sharply: pure functions of where its cutouts were.

The frame is divided into cells x cells equal cells; a cell was seen in a frame if a cutout covered its centre.
"""

import numpy as np

from mrvlm_sim.vision import JitterProcess, Pyramid

CELLS = 128  # per side of the frame


def watch(pyramid: Pyramid, frames: int, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes of `runs` independent sequences of `frames` looks, float64 (runs, frames, levels, 3) = u, v, h."""
    processes = [JitterProcess(pyramid.jitter, pyramid.levels, rng) for _ in range(runs)]
    offsets = np.stack([[process.next() for _ in range(frames)] for process in processes])
    return pyramid.boxes(pyramid.place(offsets))


def seen(boxes: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Which cells each cutout covers: boxes (..., 3) to bool (..., cells, cells), rows downwards."""
    centres = (2 * np.arange(cells) + 1) / cells - 1
    u, v, h = np.moveaxis(boxes[..., None], -2, 0)
    across = (centres >= u - h) & (centres < u + h)  # half open, so that equal cutouts cover equally many cells
    down = (centres >= v - h) & (centres < v + h)
    return down[..., :, None] & across[..., None, :]


def share_seen(boxes: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Share of the frame that was seen at each level's resolution or a finer one, at some time.

    Boxes (runs, frames, levels, 3) to float64 (runs, frames, levels): after the first look, the second, ...
    """
    runs, frames, levels, _ = boxes.shape
    shares = np.zeros((runs, frames, levels))
    for run in range(runs):
        known = np.zeros((levels, cells, cells), dtype=bool)
        for frame in range(frames):
            sharp = seen(boxes[run, frame], cells)
            known |= np.logical_or.accumulate(sharp[::-1], axis=0)[::-1]
            shares[run, frame] = known.mean(axis=(1, 2))
    return shares


def ages(boxes: np.ndarray, level: int, cells: int = CELLS) -> np.ndarray:
    """Looks since each cell was last seen at `level` or finer, at the end of each run: 0 is now, inf is never.

    Boxes (runs, frames, levels, 3) to float64 (runs, cells, cells).
    """
    runs, frames = boxes.shape[:2]
    age = np.full((runs, cells, cells), np.inf)
    for frame in range(frames):
        sharp = seen(boxes[:, frame, level:], cells).any(axis=1)
        age[sharp] = frames - 1 - frame
    return age


def bound(pyramid: Pyramid) -> np.ndarray:
    """The most of the frame that each level's cutouts can ever cover, float64 (levels,): (w + 2 j)^2, at most 1.

    w is the width of the cutout and j the farthest that jitter can move it from the centre, both in widths of the
    frame; jitter moves every level within its parent, so the ways of all levels above add up.
    """
    widths = np.array(pyramid.cutout_sizes) / pyramid.frame_size
    steps = np.minimum(pyramid.jitter.amplitude * widths[:-1] / 2, (widths[:-1] - widths[1:]) / 2)
    snapped = np.array(pyramid.factors[1:]) / pyramid.frame_size / 2  # places are whole multiples of the factor
    farthest = np.concatenate([[0.0], np.cumsum(np.where(steps > 0, steps + snapped, 0.0))])
    return np.minimum(widths + 2 * farthest, 1.0) ** 2
