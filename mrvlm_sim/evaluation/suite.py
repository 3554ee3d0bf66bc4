"""Several environments side by side: tasks x arms, and what the arms do over all tasks, under every condition."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.evaluation.tables import paired
from mrvlm_sim.metrics.statistics import over_tasks, wilson
from mrvlm_sim.paths import write_atomically

OVER_TASKS, DIFFERENCE = "interquartile mean", "difference to "
Runs = dict[str, pd.DataFrame]  # rows by environment


def suite_tables(folders: Mapping[str, Path], reference: str) -> list[pd.DataFrame]:
    """`suite_table`, and, if there are several conditions, `condition_table`."""
    runs = {name: read_episodes(folder) for name, folder in folders.items()}
    tables = [suite_table(runs, reference)]
    return tables + ([condition_table(runs, reference)] if len(_conditions(runs)) > 1 else [])


def suite_table(runs: Runs, reference: str) -> pd.DataFrame:
    """One line per environment, one column per policy, text only; the last lines are over all environments.

    Only the first condition counts. The last lines are for policies that finished episodes everywhere.
    """
    runs = _under(runs, _conditions(runs)[0]) if _conditions(runs) else runs
    policies = _policies(runs)
    lines = [{"environment": name, **{p: _rate(rows, p) for p in policies}} for name, rows in runs.items()]
    lines.append({"environment": OVER_TASKS, **{policy: _overall(_of(runs, policy)) for policy in policies}})
    if reference in policies:
        against = _of(runs, reference)
        others = {p: "-" if p == reference else _overall(_of(runs, p), against) for p in policies}
        lines.append({"environment": DIFFERENCE + reference, **others})
    return pd.DataFrame(lines)


def condition_table(runs: Runs, reference: str) -> pd.DataFrame:
    """One line per condition and policy, over all environments: interquartile mean, what was lost against the first
    condition, and the difference to the reference under the same one; all on the same episodes, text only."""
    first, *_ = conditions = _conditions(runs)
    policies, lines = _policies(runs), []
    for condition in conditions:
        under = partial(_of, _under(runs, condition))
        for policy in policies:
            own, clean = under(policy), _of(_under(runs, first), policy)
            line = {"condition": condition, "policy": policy, OVER_TASKS: _overall(own)}
            line["change"] = "-" if condition == first else _overall(own, clean)
            if reference in policies:
                line[DIFFERENCE + reference] = "-" if policy == reference else _overall(own, under(reference))
            lines.append(line)
    return pd.DataFrame(lines)


def write_suite(folder: Path, tables: Sequence[pd.DataFrame]) -> None:
    """Write `suite.md` and `suite.csv`, and of a second table `conditions.md` and `conditions.csv`."""
    for stale in ("conditions.md", "conditions.csv"):
        (folder / stale).unlink(missing_ok=True)
    for name, table in zip(("suite", "conditions"), tables, strict=False):
        write_atomically(folder / f"{name}.md", table.to_markdown(index=False) + "\n")
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False))


def _conditions(runs: Runs) -> list[str]:
    return list(dict.fromkeys(condition for rows in runs.values() for condition in rows["condition"]))


def _policies(runs: Runs) -> list[str]:
    return list(dict.fromkeys(policy for rows in runs.values() for policy in rows["policy"]))


def _under(runs: Runs, condition: str) -> Runs:
    return {name: rows[rows["condition"] == condition] for name, rows in runs.items()}


def _of(runs: Runs, policy: str) -> Runs:
    return {name: rows[rows["policy"] == policy] for name, rows in runs.items()}


def _rate(rows: pd.DataFrame, policy: str) -> str:
    own = rows.loc[rows["policy"] == policy, "success"]
    if own.empty:
        return "-"
    low, high = wilson(int(own.sum()), len(own))
    return f"{100 * own.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _overall(runs: Runs, against: Runs | None = None) -> str:
    """Interquartile mean over the environments, or its difference to that of others, with its interval."""
    pairs = [paired(rows, against[name] if against else rows) for name, rows in runs.items()]
    own, others = ([pair[i] for pair in pairs] for i in (0, 1))
    if not all(map(len, own)):
        return "-"
    value, low, high = (100 * number for number in over_tasks(own, others if against else None))
    sign = "+" if against else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
