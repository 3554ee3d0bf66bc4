"""Learning curves of trainings by reinforcement: success against steps and against time, seeds of one arm together."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mrvlm_sim.errors import UserError
from mrvlm_sim.paths import make_parent, write_atomically

CURVE = "curve.csv"


def read_curves(folders: Iterable[Path]) -> pd.DataFrame:
    """One line for every evaluation of every training: run, seed, steps, seconds, success and what else was kept.

    Folders whose names differ only in the seed that they end in are one run: `ppo-reach-mine-0` and `ppo-reach-mine-1`.

    Raises:
        UserError: a folder has no curve yet, its curve has no success in it, or two folders are called alike.
    """
    curves: dict[tuple[str, int], pd.DataFrame] = {}
    for folder in folders:
        path = folder / CURVE
        if not path.is_file():
            raise UserError(f"{path} is missing; a training writes it after its first segment: mrvlm-sim train rl")
        curve = pd.read_csv(path)
        if "success" not in curve:
            raise UserError(f"{path} has no column success: that training was not evaluated (--eval-episodes 0)")
        seed = int(curve["seed"].iloc[0])
        run = folder.resolve().name.removesuffix(f"-{seed}")
        if (run, seed) in curves:
            raise UserError(f"two trainings are called {run} and have seed {seed}; name every folder once")
        curve.insert(0, "run", run)
        curves[run, seed] = curve
    return pd.concat(curves.values(), ignore_index=True)


def curve_table(curves: pd.DataFrame) -> pd.DataFrame:
    """One line per run: how far it got and how long it took; several seeds as mean [least, most]."""
    last = curves.groupby(["run", "seed"], sort=False).last().reset_index()
    lines = []
    for run, seeds in last.groupby("run", sort=False):
        lines.append(
            {
                "run": run,
                "seeds": str(len(seeds)),
                "steps": f"{seeds['steps'].max():,}",
                "minutes": _spread(seeds["seconds"] / 60),
                "success %": _spread(100 * seeds["success"]),
                "in training %": _spread(100 * seeds["train_success"]),
                "named thing, mm off": _spread(seeds["named_mm"]),
            }
        )
    return pd.DataFrame(lines)


def _spread(values: pd.Series) -> str:
    middle = f"{values.mean():.0f}"
    return middle if len(values) == 1 else f"{middle} [{values.min():.0f}, {values.max():.0f}]"


def write_curves(folder: Path, curves: pd.DataFrame) -> pd.DataFrame:
    """Write `curves.csv`, `curves.md` and `curves.png`; returns the table."""
    make_parent(folder / "curves.csv")
    table = curve_table(curves)
    write_atomically(folder / "curves.csv", curves.to_csv(index=False))
    write_atomically(folder / "curves.md", table.to_markdown(index=False) + "\n")
    draw_curves(curves, folder / "curves.png")
    return table


def draw_curves(curves: pd.DataFrame, path: Path) -> None:
    """Success against steps and against minutes of training; a thin line for every seed, a thick one for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    curves = curves.assign(minutes=curves["seconds"] / 60, percent=100 * curves["success"])
    for index, (run, seeds) in enumerate(curves.groupby("run", sort=False)):
        colour, several = f"C{index}", seeds["seed"].nunique() > 1
        for axis, x in zip(axes, ("steps", "minutes"), strict=True):
            for _, seed in seeds.groupby("seed"):
                axis.plot(seed[x], seed["percent"], color=colour, alpha=0.4, linewidth=1)
            mean = seeds.groupby("steps")[[x, "percent"]].mean()
            axis.plot(
                mean[x], mean["percent"], color=colour, linewidth=2, marker="o", markersize=3,
                label=f"{run} (mean of {seeds['seed'].nunique()} seeds)" if several else str(run),
            )  # fmt: skip
    axes[0].set(xlabel="steps of all environments", ylabel="success %", ylim=(-3, 103), xlim=(0, None))
    axes[1].set(xlabel="minutes of training, pretraining included", xlim=(0, None))
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
