"""The main job: carry out what is left of a plan, keep every row, end with one table."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mrvlm_sim.agents.registry import policy_identity, policy_name
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.report import write_report
from mrvlm_sim.evaluation.runner import Job, run_jobs
from mrvlm_sim.evaluation.runs import Plan, environment_identity, provenance, run_path
from mrvlm_sim.evaluation.store import Key, RunStore
from mrvlm_sim.evaluation.tables import policy_cost
from mrvlm_sim.paths import runs_folder


class Evaluation:
    """A plan that is carried out in a folder; episodes that the folder has already are not run again.

    Raises:
        UserError: no policy fits, the folder cannot be written to, or its run was begun with other cards or weights.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path | None,
        workers: int,
        shard: tuple[int, int] = (0, 1),
        timeout: float | None = None,
        retry_errors: bool = False,
    ) -> None:
        if workers < 0:
            raise UserError(f"--workers must be at least 0, not {workers}")
        if timeout is not None and timeout <= 0:
            raise UserError(f"--timeout must be more than 0 seconds, not {timeout:g}")
        self.plan, self.workers, self.timeout = plan, workers, timeout
        policies, self.problems = plan.load()
        if not policies:
            raise UserError("no policy fits the environment:\n" + "\n".join(self.problems.values()))
        named = {policy_name(reference): reference for reference in plan.policies}
        identities = {name: policy_identity(named[name]) for name in policies}
        self.folder = folder or run_path(runs_folder(), plan, identities)
        part, parts = shard
        planned = plan.jobs(self.folder, policies)[part::parts]
        self.store = RunStore(self.folder)
        try:
            self.store.agree("environment", plan.environment, environment_identity(plan.environment))
            for name, policy in policies.items():
                self.store.agree("policy", name, {"identity": identities[name], "cost": policy_cost(policy)})
            for condition in plan.conditions:
                self.store.agree("condition", condition.name, vars(condition))
            self.store.note_session(provenance(plan.environment, workers))
            self.store.plan(map(job_key, planned))
            if retry_errors:
                self.store.forget_errors()
            finished = self.store.finished()
        except BaseException:
            self.store.close()
            raise
        self.jobs = [job for job in planned if job_key(job) not in finished]
        self.resumed = len(planned) - len(self.jobs)
        self.records: list[EpisodeRecord] = []

    def run(self, progress: Callable[[EpisodeRecord], None]) -> None:
        """Run every episode that is left; on KeyboardInterrupt what is done stays."""
        for record in run_jobs(self.jobs, self.workers, self.timeout):
            self.store.add(record)
            self.records.append(record)
            progress(record)

    def finish(self) -> pd.DataFrame:
        """Close the store, write the report, and return the table with raw numbers."""
        self.store.close()
        return write_report(self.folder, self.plan.reference, self.notes())

    def notes(self) -> list[str]:
        """What this process left out of the plan, and why."""
        return [f"left out {name}: {problem}" for name, problem in self.problems.items()]


def job_key(job: Job) -> Key:
    return Key(job.name, job.condition.name, job.suite_seed, job.episode)


def default_workers() -> int:
    """One process per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
