"""Several environments side by side: tasks x arms, and what the arms do over all tasks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.evaluation.tables import paired
from mrvlm_sim.metrics.statistics import over_tasks, wilson
from mrvlm_sim.paths import write_atomically

OVER_TASKS, DIFFERENCE = "interquartile mean", "difference to "


def suite_table(folders: Mapping[str, Path], reference: str) -> pd.DataFrame:
    """One line per environment, one column per policy, text only; the last lines are over all environments.

    Only first conditions count. The last lines are for policies that finished episodes everywhere.
    """
    runs = {name: _first_condition(read_episodes(folder)) for name, folder in folders.items()}
    policies = list(dict.fromkeys(policy for rows in runs.values() for policy in rows["policy"]))
    lines = [{"environment": name, **{p: _rate(rows, p) for p in policies}} for name, rows in runs.items()]
    overall = {policy: _overall(runs, policy, None) for policy in policies}
    lines.append({"environment": OVER_TASKS, **overall})
    if reference in policies:
        differences = {policy: _overall(runs, policy, reference) for policy in policies}
        lines.append({"environment": DIFFERENCE + reference, **differences})
    return pd.DataFrame(lines)


def write_suite(folder: Path, table: pd.DataFrame) -> None:
    """Write `suite.md` and `suite.csv`."""
    write_atomically(folder / "suite.md", table.to_markdown(index=False) + "\n")
    write_atomically(folder / "suite.csv", table.to_csv(index=False))


def _first_condition(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["condition"] == rows["condition"].iloc[0]] if len(rows) else rows


def _rate(rows: pd.DataFrame, policy: str) -> str:
    own = rows.loc[rows["policy"] == policy, "success"]
    if own.empty:
        return "-"
    low, high = wilson(int(own.sum()), len(own))
    return f"{100 * own.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _overall(runs: Mapping[str, pd.DataFrame], policy: str, reference: str | None) -> str:
    """Interquartile mean over the environments, or its difference to that of the reference, with its interval."""
    own, against = list[np.ndarray](), list[np.ndarray]()
    for rows in runs.values():
        a, b = paired(rows[rows["policy"] == policy], rows[rows["policy"] == (reference or policy)])
        own.append(a)
        against.append(b)
    if policy == reference or not all(map(len, own)):
        return "-"
    value, low, high = (100 * number for number in over_tasks(own, against if reference else None))
    sign = "+" if reference else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
