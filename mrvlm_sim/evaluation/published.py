"""Runs as they are published: `episodes.csv` and `provenance.json`, without the file of initial states and actions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mrvlm_sim.errors import UserError
from mrvlm_sim.paths import write_atomically

EPISODES, PROVENANCE = "episodes.csv", "provenance.json"
NEEDED = ("environment", "policy", "condition", "suite_seed", "episode", "success", "error")


def publish(folder: Path, rows: pd.DataFrame, described: Mapping[str, Any], planned: int) -> None:
    """Write both files: the episodes that are finished, what they are of, and how many were to be."""
    write_atomically(folder / EPISODES, rows.to_csv(index=False))
    write_atomically(folder / PROVENANCE, json.dumps({**described, "planned": planned}, indent=2) + "\n")


def is_published(folder: Path) -> bool:
    """Whether both files are there."""
    return (folder / EPISODES).is_file() and (folder / PROVENANCE).is_file()


def published(folder: Path, kind: str) -> Any:
    """What the run is of: `sessions`, `environment`, `condition` or `policy`.

    Raises:
        UserError: that file is damaged.
    """
    described = _provenance(folder)
    if kind not in described:
        raise UserError(f"{folder / PROVENANCE} is damaged: it names no {kind}; restore it")
    return described[kind]


def _provenance(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from error
    if not isinstance(described, dict):
        raise UserError(f"{path} is damaged: it describes no run; restore it")
    return described


def published_episodes(folder: Path, columns: Mapping[str, type]) -> pd.DataFrame:
    """The episodes, one row each; of columns that came later than the file, 0.

    Raises:
        UserError: the file is damaged, or the run was not finished when it was written.
    """
    path = folder / EPISODES
    texts = [name for name, kind in columns.items() if kind not in (int, bool, float)]
    numbers = {name: [""] for name in columns if name not in texts}  # of which alone, nothing is not a number
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=numbers)
        if missing := [name for name in NEEDED if name not in rows]:
            raise ValueError(f"it has no column {missing[0]!r}")
        rows = rows.reindex(columns=list(columns), fill_value=0)
        rows = rows.astype({name: kind for name, kind in columns.items() if kind in (int, bool)})
    except ValueError as error:  # of pandas, too
        raise UserError(f"{path} is damaged ({error}); restore it") from error
    planned = _provenance(folder).get("planned", len(rows))
    if planned != len(rows):
        raise UserError(f"{path} has {len(rows)} of {planned} episodes: it was written before the run was finished")
    return rows
