"""Attacks from the smallest to the largest, each only on what those before it left, as AutoAttack does.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(2020). An attack that broke an episode is also open to whoever may change more, so the worst case is the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mrvlm_sim.evaluation.condition import attack_size
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.store import read_episodes, read_parts

Episode = tuple[str, int, int]  # policy, suite seed, index


def cascade(folder: Path, jobs: Sequence[Job]) -> Iterator[tuple[list[Job], list[Job]]]:
    """The jobs of one condition after the other, and those of it that are left out: clean ones, then attacks by size.

    Left out are episodes that failed before, clean or under an attack that is no larger; an error is no failure. Every
    list is made when the one before it is finished, from what the run in `folder` holds then.
    """
    conditions = dict.fromkeys(job.condition for job in jobs)
    for condition in sorted(conditions, key=lambda each: each.eps):  # stable: within a size as they were given
        rows = read_episodes(folder)
        gone = lost(rows[rows["condition"] != condition.name], read_parts(folder, "condition"), condition.eps)
        own = [job for job in jobs if job.condition == condition]
        needless = [(job.name, job.suite_seed, job.episode) in gone for job in own]
        yield (
            [job for job, out in zip(own, needless, strict=True) if not out],
            [job for job, out in zip(own, needless, strict=True) if out],
        )


def with_sizes(rows: pd.DataFrame, conditions: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The rows with a column `size`, that of `attack_size`."""
    sizes = {name: attack_size(described) for name, described in conditions.items()}
    return rows.assign(size=rows["condition"].map(sizes).astype(float))


def lost(rows: pd.DataFrame, conditions: Mapping[str, Mapping[str, Any]], size: float) -> set[Episode]:
    """What no attack of that size needs to break any more."""
    sized = with_sizes(rows, conditions)
    return episodes_of(sized[(sized["size"] <= size) & ~sized["success"] & (sized["error"] == "")])


def episodes_of(rows: pd.DataFrame) -> set[Episode]:
    return set(rows[["policy", "suite_seed", "episode"]].itertuples(index=False, name=None))
