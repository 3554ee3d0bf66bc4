"""Arms of several runs side by side, on the episodes that they share."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.evaluation.report import session_notes
from mrvlm_sim.evaluation.store import planned_keys, read_episodes, read_parts, read_sessions
from mrvlm_sim.evaluation.tables import success_table


def compare_runs(runs: Sequence[Path], reference: str | None = None) -> tuple[pd.DataFrame, list[str], str]:
    """The table of all arms of all runs, notes on what makes them less comparable, and the reference's name.

    An arm that several runs have is called `run/arm`. Without a reference, it is the first arm of the first run.

    Raises:
        UserError: a folder holds no run, the runs are of several environments, or the reference is in none of them.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice; every run counts once")
    rows, planned = _all_rows(runs)
    environments = sorted({name for run in runs for name in read_parts(run, "environment")})
    if len(environments) > 1:
        raise UserError(f"runs of several environments cannot be compared: {', '.join(environments)}")
    names = list(planned)
    if not names:
        raise UserError("nothing was planned in these runs; run `mrvlm-sim eval` into them first")
    if reference is not None and reference not in names:
        raise unknown_name("policy in these runs", reference, names)
    chosen = reference or names[0]
    return success_table(rows, planned, chosen), _differences(runs), chosen


def flipped(runs: Sequence[Path], reference: str) -> pd.DataFrame:
    """For every other arm, the episodes that only it solved and those that only the reference solved."""
    rows, planned = _all_rows(runs)
    name = ["condition", "suite_seed", "episode"]
    base = rows[rows["policy"] == reference].set_index(name)["success"]
    lines = []
    for policy in planned:
        if policy == reference:
            continue
        own = rows[rows["policy"] == policy].set_index(name)["success"]
        both = pd.concat([own, base], axis=1, join="inner", keys=["own", "base"])
        gained, lost = both[both["own"] & ~both["base"]], both[~both["own"] & both["base"]]
        lines.append({"policy": policy, "only it": _episodes(gained), f"only {reference}": _episodes(lost)})
    return pd.DataFrame(lines)


def _all_rows(runs: Sequence[Path]) -> tuple[pd.DataFrame, Counter[str]]:
    """The rows of all runs with policies that are called differently, and how many episodes each was to have."""
    frames = [read_episodes(run) for run in runs]
    owners = Counter(policy for frame in frames for policy in frame["policy"].unique())
    names = [run.resolve().name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run) for run in runs]
    planned: Counter[str] = Counter()
    for run, label, frame in zip(runs, labels, frames, strict=True):
        called = {policy: f"{label}/{policy}" if owners[policy] > 1 else policy for policy in owners}
        frame["policy"] = frame["policy"].map(called)
        planned.update(called.get(key.policy, key.policy) for key in planned_keys(run))
    return pd.concat(frames, ignore_index=True), planned


def _differences(runs: Sequence[Path]) -> list[str]:
    """In what the runs were made differently."""
    sessions = {str(run): read_sessions(run) for run in runs}
    notes = session_notes([session for of_run in sessions.values() for session in of_run])
    frames = {
        run: sorted({session.get("standard_frame", "unknown") for session in own}) for run, own in sessions.items()
    }
    if len({frame for found in frames.values() for frame in found}) > 1:
        told = "; ".join(f"{name}: {', '.join(found)}" for name, found in frames.items())
        notes.append(f"the runs were rendered differently (standard frame: {told})")
    parts = [read_parts(run, "environment") for run in runs]
    if any(part != parts[0] for part in parts):
        notes.append("the environment's card or files changed between the runs")
    conditions = [read_parts(run, "condition") for run in runs]
    for name in sorted(set.intersection(*(set(condition) for condition in conditions))):
        if any(condition[name] != conditions[0][name] for condition in conditions):
            notes.append(f"the condition {name} is not the same in all runs")
    return notes


def _episodes(rows: pd.DataFrame) -> str:
    conditions = rows.index.get_level_values("condition")
    found = [
        f"{condition}: {', '.join(str(e) for e in rows[conditions == condition].index.get_level_values('episode'))}"
        for condition in dict.fromkeys(conditions)
    ]
    return "; ".join(found) or "-"
