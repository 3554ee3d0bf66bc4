"""The promise of jitter, measured: how much of the frame is seen sharply within some looks, and how stale it gets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.coverage import ages, bound, share_seen, watch
from mrvlm_sim.paths import make_parent
from mrvlm_sim.vision import Pyramid

RUNS = 200
MOMENTS = (1, 2, 5, 10, 20, 50, 100)  # looks


@dataclass(frozen=True)
class Coverage:
    """Shares of the frame (runs, frames, levels), and ages of the finest samples (runs, cells, cells)."""

    pyramid: Pyramid
    shares: np.ndarray
    ages: np.ndarray

    @property
    def frames(self) -> int:
        return self.shares.shape[1]


def other_jitter(pyramid: Pyramid, **sizes: float | None) -> Pyramid:
    """The pyramid with other components of jitter; None leaves one as it is.

    Raises:
        UserError: a size is not between 0 and 1.
    """
    for name, size in sizes.items():
        if size is not None and not 0 <= size <= 1:
            raise UserError(f"--{name} must be between 0 and 1 half-widths of the parent view, not {size:g}")
    changed = {name: size for name, size in sizes.items() if size is not None}
    return pyramid.model_copy(update={"jitter": pyramid.jitter.model_copy(update=changed)})


def cover(pyramid: Pyramid, frames: int, seed: int = 0, runs: int = RUNS) -> Coverage:
    """Watch a pyramid's jitter for some looks, many times over."""
    boxes = watch(pyramid, frames, runs, np.random.default_rng(seed))
    return Coverage(pyramid, share_seen(boxes), ages(boxes, pyramid.levels - 1))


def coverage_table(coverage: Coverage) -> pd.DataFrame:
    """A line per level: sensor pixels per view pixel, share of the frame seen so sharply after some looks, the bound.

    Shares are means over the runs with the range that holds 95 % of them.
    """
    pyramid, limit = coverage.pyramid, bound(coverage.pyramid)
    moments = [moment for moment in MOMENTS if moment < coverage.frames] + [coverage.frames]
    lines = []
    for level in range(pyramid.levels):
        line = {"level": str(level), "sensor px per view px": str(pyramid.factors[level])}
        line |= {f"% after {m} look{'s' * (m > 1)}": _spread(100 * coverage.shares[:, m - 1, level]) for m in moments}
        lines.append(line | {"bound (w + 2j)^2": f"{100 * limit[level]:.1f}"})
    return pd.DataFrame(lines)


def age_table(coverage: Coverage) -> pd.DataFrame:
    """How old the newest sample of the finest level is, by distance from the frame's centre."""
    cells = coverage.ages.shape[-1]
    centres = np.abs((2 * np.arange(cells) + 1) / cells - 1)
    ring = np.maximum(*np.meshgrid(centres, centres))
    lines = []
    for inner, outer in ((0, 0.125), (0.125, 0.25), (0.25, 0.375), (0.375, 0.5), (0.5, 1.0)):
        there = coverage.ages[:, (ring >= inner) & (ring < outer)]
        known = there[np.isfinite(there)]
        lines.append(
            {
                "distance from the centre": f"{inner:g} to {outer:g}",
                "seen sharply": f"{100 * np.isfinite(there).mean():.1f} %",
                "median age in looks": f"{np.median(known):.0f}" if len(known) else "-",
                "95th percentile": f"{np.percentile(known, 95):.0f}" if len(known) else "-",
            }
        )
    return pd.DataFrame(lines)


def draw_coverage(coverage: Coverage, path: Path) -> None:
    """A picture: how often each place was seen at the finest level, its mean age, and the shares over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    known = np.isfinite(coverage.ages)
    _map(figure, left, 100 * known.mean(axis=0), f"% of runs that saw it sharply\nwithin {coverage.frames} looks")
    total = np.where(known, coverage.ages, 0).sum(axis=0)
    age = np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))
    _map(figure, middle, age, "mean age of the newest sharp sample\n(looks, where there is one)")
    for level in range(coverage.pyramid.levels):
        line = right.plot(range(1, coverage.frames + 1), 100 * coverage.shares[..., level].mean(axis=0))[0]
        line.set_label(f"level {level}: {coverage.pyramid.factors[level]} sensor px per view px")
        right.axhline(100 * bound(coverage.pyramid)[level], color=line.get_color(), linestyle=":", linewidth=1)
    right.set(xlabel="looks", ylabel="% of the frame seen so sharply, or sharper", ylim=(0, 105))
    right.set_title("dotted: the bound (w + 2j)²", fontsize=10)
    right.legend(fontsize=8)
    make_parent(path)
    figure.savefig(path, dpi=110)


def _map(figure, axes, values: np.ndarray, title: str) -> None:  # type: ignore[no-untyped-def]
    shown = axes.imshow(values, extent=(-1, 1, 1, -1), cmap="viridis")
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="u", ylabel="v")
    figure.colorbar(shown, ax=axes, shrink=0.85)


def _spread(values: np.ndarray) -> str:
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"
