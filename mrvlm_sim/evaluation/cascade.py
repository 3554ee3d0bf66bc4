"""Attacks from the smallest to the largest, each only on what those before it left, as AutoAttack does.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(2020). An attack that broke an episode is also open to whoever may change more, so the worst case is the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.store import read_episodes, read_parts


def cascade(folder: Path, jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """The jobs of one condition after the other: clean ones, then attacks by size.

    Left out are those of episodes that failed before, clean or under an attack that is no larger; an error is no
    failure. Every list is made when the one before it is finished, from what the run in `folder` holds then.
    """
    conditions = dict.fromkeys(job.condition for job in jobs)
    for condition in sorted(conditions, key=lambda each: each.eps):  # stable: within a size as they were given
        own, lost = [job for job in jobs if job.condition == condition], _lost(folder, condition)
        yield [job for job in own if (job.name, job.suite_seed, job.episode) not in lost]


def _lost(folder: Path, condition: Condition) -> set[tuple[str, int, int]]:
    """Policy, suite seed and episode of what no attack of that size needs to break any more."""
    rows, parts = read_episodes(folder), read_parts(folder, "condition")
    sizes = rows["condition"].map(lambda name: parts[name]["eps"])
    failed = rows[(sizes <= condition.eps) & ~rows["success"] & (rows["error"] == "")]
    failed = failed[failed["condition"] != condition.name]
    return set(failed[["policy", "suite_seed", "episode"]].itertuples(index=False, name=None))
