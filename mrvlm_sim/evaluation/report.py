"""From the store of a run to what people read: table, notes, rows as CSV, provenance."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mrvlm_sim.agents.policy import CPU
from mrvlm_sim.evaluation.cascade import episodes_of, lost
from mrvlm_sim.evaluation.condition import attack_size
from mrvlm_sim.evaluation.published import publish
from mrvlm_sim.evaluation.store import KINDS, Key, planned_keys, read_episodes, read_parts, read_sessions
from mrvlm_sim.evaluation.tables import REFERENCE, pretty_tables, success_table
from mrvlm_sim.paths import write_atomically


def write_report(folder: Path, reference: str = REFERENCE, notes: Sequence[str] = ()) -> pd.DataFrame:
    """Write `table.md`, `table.csv`, `episodes.csv` and `provenance.json`; returns the table with raw numbers.

    `notes` go under the table, before those that the store gives rise to.
    """
    rows, table = read_episodes(folder), run_table(folder, reference)
    shown = [] if table.empty else pretty_tables(table, reference)
    text = "\n\n".join(part.to_markdown(index=False) for part in shown)
    lines = [text or "no episode was finished", *(f"\n- {note}" for note in [*notes, *run_notes(folder)])]
    parts = {kind: read_parts(folder, kind) for kind in KINDS}
    write_atomically(folder / "table.md", "\n".join(lines) + "\n")
    write_atomically(folder / "table.csv", table.to_csv(index=False))
    publish(folder, rows, {"sessions": read_sessions(folder), **parts}, planned=len(planned_keys(folder)))
    return table


def run_table(folder: Path, reference: str = REFERENCE) -> pd.DataFrame:
    """One line per planned policy, with raw numbers; empty if no episode was finished."""
    planned = Counter(key.policy for key in planned_keys(folder))
    table = success_table(read_episodes(folder), planned, reference)
    if table.empty:
        return table
    costs = [{"policy": name, **part["cost"]} for name, part in read_parts(folder, "policy").items()]
    return table.merge(pd.DataFrame(costs), on="policy", how="left")


def run_notes(folder: Path) -> list[str]:
    """What a reader of the table must know: what is missing, does not apply, or went wrong."""
    planned, rows, notes = planned_keys(folder), read_episodes(folder), []
    if missing := len(planned) - len(rows):
        notes.append(f"{missing} of {len(planned)} episodes are missing; the same command runs them")
    if at_reset := int(rows["success_at_reset"].sum()):
        notes.append(f"{at_reset} episodes were solved at reset: these starts make no test")
    sessions = read_sessions(folder)
    return notes + _untouched(planned, rows, folder, sessions) + session_notes(sessions) + _errors(rows)


def _untouched(
    planned: Sequence[Key], rows: pd.DataFrame, folder: Path, sessions: Sequence[dict[str, Any]]
) -> list[str]:
    """Conditions that were not run for some policies, or for some of what --until-broken had to leave."""
    until_broken = any(session.get("until_broken") for session in sessions)
    policies = dict.fromkeys(key.policy for key in planned)
    pairs, conditions, notes = {(key.policy, key.condition) for key in planned}, read_parts(folder, "condition"), []
    for condition, described in conditions.items():
        names = [name for name in policies if (name, condition) not in pairs]
        if until_broken:
            met = episodes_of(rows[rows["condition"] == condition])
            left = Counter(
                name for name, *_ in episodes_of(rows) - lost(rows, conditions, attack_size(described)) - met
            )
            names = [name for name in names if left[name]]
            if unmet := sum(left[name] for name in policies if (name, condition) in pairs):
                notes.append(f"{unmet} episodes are left to {condition}; the same command runs them")
        if names:
            notes.append(f"{condition} was not run for {', '.join(names)}")
    return notes


def session_notes(sessions: Sequence[dict[str, Any]]) -> list[str]:
    """What the processes that did the work say of it: early stopping, and versions that were not the same for all."""
    notes = []
    if any(session.get("until_decided") for session in sessions):
        notes.append("episodes were run until decided: e-values allow for that, intervals and p-values do not")
    if any(session.get("until_broken") for session in sessions):
        notes.append("attacked until broken: single attacks may not have met the episodes that others had broken")
    for package in dict.fromkeys(name for session in sessions for name in session["versions"]):
        if len(found := {session["versions"].get(package, "none") for session in sessions}) > 1:
            notes.append(f"made with several versions of {package}: {', '.join(sorted(found))}")
    if (found := {session.get("device", CPU) for session in sessions}) != {CPU} and sessions:
        notes.append(f"policies computed on {', '.join(sorted(found))}")
    if len(found := {session["renderer"] for session in sessions}) > 1:
        notes.append(f"made with several renderers: {', '.join(sorted(found))}")
    return notes


def _errors(rows: pd.DataFrame) -> list[str]:
    """Every different error of the episodes, with the policy it belongs to and how often it came."""
    counted = Counter(zip(rows["policy"], rows["error"], strict=True))
    return [f"error of {policy}: {error} ({n} episodes)" for (policy, error), n in counted.items() if error]
