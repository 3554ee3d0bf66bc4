"""What is written of acuity: trials, surface and thresholds as tables, and their picture."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from mrvlm_sim.agents.registry import load_policy, policy_name
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.acuity import CHANCE, Threshold, arm_cost, surface, threshold_table
from mrvlm_sim.evaluation.tables import in_percent, signed, with_holm
from mrvlm_sim.metrics.psychometrics import interval
from mrvlm_sim.metrics.statistics import compare_paired, holm, wilson
from mrvlm_sim.paths import make_parent, write_atomically

ABREAST = 5  # maps in a row of the picture


def load_readable(references: Sequence[str]) -> dict[str, TrainedPolicy]:
    """Trained policies by their names.

    Raises:
        UserError: one is no trained arm, looks through another camera than the wrist's, or chooses its gaze.
    """
    policies = {}
    for reference in references:
        policy = load_policy(reference)
        if not isinstance(policy, TrainedPolicy):
            raise UserError(f"--arm takes arms with weights and policy folders, not {reference}")
        if list(policy.card.cameras) != ["wrist"]:
            seen = ", ".join(policy.card.cameras)
            raise UserError(f"acuity is that of the wrist camera; {reference} looks through {seen}")
        if policy.card.cameras["wrist"].gaze == "policy":
            raise UserError(f"acuity is that of one look, and {reference} has chosen its gaze only after that")
        if (name := policy_name(reference)) in policies:
            raise UserError(f"two arms are called {name}; name every arm once, or copy or rename one")
        policies[name] = policy
    return policies


def write_acuity(
    folder: Path,
    trials: pd.DataFrame,
    found: Mapping[str, Mapping[float, Threshold]],
    policies: Mapping[str, TrainedPolicy],
) -> pd.DataFrame:
    """Write `trials.csv`, `surface.csv`, `thresholds.md` and `.csv`, `acuity.png`; returns the table of thresholds.

    Trials and `thresholds` found are of the same arms.
    """
    make_parent(folder / "trials.csv")
    surfaces = surface(trials)
    table = threshold_table(found, policies)
    write_atomically(folder / "trials.csv", trials.to_csv(index=False))
    write_atomically(folder / "surface.csv", surfaces.to_csv(index=False, float_format="%.4f"))
    write_atomically(folder / "thresholds.csv", table.to_csv(index=False))
    write_atomically(folder / "thresholds.md", table.to_markdown(index=False) + "\n")
    draw_acuity(surfaces, found, {arm: arm_cost(policy) for arm, policy in policies.items()}, folder / "acuity.png")
    return table


def write_right(folder: Path, trials: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Write `right.md` and `right.csv`: what share of the trials every arm got right, paired with the reference."""
    right = {arm: (own["named"] == own["chosen"]).to_numpy() for arm, own in trials.groupby("arm", sort=False)}
    others = {arm: compare_paired(right[arm], right[reference]) for arm in right if arm != reference}
    corrected = dict(zip(others, holm([compared.p_value for compared in others.values()]), strict=True))
    lines = []
    for arm in right:
        line = {"arm": arm, "right %": in_percent(right[arm].mean(), *wilson(int(right[arm].sum()), len(right[arm])))}
        if arm in others:
            compared = others[arm]
            line[f"difference to {reference}"] = signed(compared.difference, compared.low, compared.high)
            line["McNemar p (Holm)"] = with_holm(compared.p_value, corrected[arm])
        lines.append(line)
    table = pd.DataFrame(lines).fillna("-")
    write_atomically(folder / "right.csv", table.to_csv(index=False))
    write_atomically(folder / "right.md", table.to_markdown(index=False) + "\n")
    return table


def draw_acuity(
    surfaces: pd.DataFrame,
    found: Mapping[str, Mapping[float, Threshold]],
    costs: Mapping[str, Mapping[str, str]],
    path: Path,
) -> None:
    """One map per arm of the share right over size and eccentricity, then threshold against eccentricity for all."""
    from matplotlib.figure import Figure

    rows = ceil(len(found) / ABREAST)
    columns = ceil(len(found) / rows)
    figure = Figure(figsize=(3.2 * columns + 5.5, 4.2 * rows), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[columns, 1.5], squeeze=False)[0]
    axes = left.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    for axis, arm in zip(axes, found, strict=False):
        shares = surfaces[surfaces["arm"] == arm].pivot(index="size", columns="eccentricity", values="share")
        _map(axis, shares, f"{arm}\n{costs[arm]['tokens']} tokens, {costs[arm]['GFLOPs']} GFLOPs")
    _thresholds(right.subplots(), found)
    figure.savefig(path, dpi=110)


def beyond(value: Threshold) -> tuple[float, str]:
    """Where and how a threshold that is not known is drawn: as near as the marks shown go, pointing beyond them."""
    smaller, larger = (value.samples < value.smallest).sum(), np.isinf(value.samples).sum()
    return float(np.clip(value.degrees, value.smallest, value.largest)), "v" if smaller > larger else "^"


def _map(axis, shares: pd.DataFrame, title: str) -> None:  # type: ignore[no-untyped-def]
    axis.imshow(shares, origin="lower", aspect="auto", vmin=CHANCE, vmax=1, cmap="viridis")
    axis.set_xticks(range(len(shares.columns)), [f"{value:g}" for value in shares.columns])
    axis.set_yticks(range(len(shares.index)), [f"{value:g}" for value in shares.index])
    axis.set(xlabel="eccentricity, degrees", ylabel="size of the mark, degrees")
    axis.set_title(f"{title}\n% right of four (25: guessing)", fontsize=9)
    for (row, column), share in np.ndenumerate(shares.to_numpy()):
        if np.isfinite(share):
            colour = "white" if share < 0.7 else "black"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _thresholds(axis, found: Mapping[str, Mapping[float, Threshold]]) -> None:  # type: ignore[no-untyped-def]
    """Lines through what is known, open triangles for the rest."""
    for index, (arm, places) in enumerate(found.items()):
        beside = 0.3 * index * min(1, ABREAST / len(found))
        known = {place: value for place, value in places.items() if value.known}
        x, y = np.array(list(known)) + beside, np.array([value.degrees for value in known.values()])
        limits = np.array([interval(value.samples, method="nearest") for value in known.values()]).reshape(-1, 2)
        limits = np.clip(limits, 0.1, 100)
        line = axis.errorbar(x, y, np.abs(limits.T - y), marker="o", markersize=4, capsize=2, linewidth=1, label=arm)
        for place, value in places.items():
            if not value.known:
                at, marker = beyond(value)
                axis.plot(place + beside, at, marker, color=line[0].get_color(), fillstyle="none")
    axis.set(xlabel="eccentricity, degrees", ylabel="threshold, degrees", yscale="log", ylim=(0.8, 12))
    axis.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axis.set_title("mark read half way from guessing to best\n(open: it may lie beyond the marks shown)", fontsize=9)
    axis.legend(fontsize=8)
