"""The main job: carry out what is left of a plan, keep every row, end with one table."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from mrvlm_sim.agents.policy import CPU, Movable
from mrvlm_sim.agents.registry import policy_identity, policy_name
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.cascade import cascade
from mrvlm_sim.evaluation.cluster import RayWorkers, find_cluster
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.race import ROUND, Race
from mrvlm_sim.evaluation.replay import eyes_of
from mrvlm_sim.evaluation.report import write_report
from mrvlm_sim.evaluation.runner import Job, Workers, default_workers
from mrvlm_sim.evaluation.runs import Plan, condition_identity, environment_identity, provenance, run_path
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
        workers: int | None = None,
        shard: tuple[int, int] = (0, 1),
        timeout: float | None = None,
        retry_errors: bool = False,
        until_decided: bool = False,
        cluster: str | None = None,
        until_broken: bool = False,
    ) -> None:
        _check_processes(workers, timeout, cluster, plan.device)
        self.workers = default_workers() if workers is None and cluster is None else workers
        self.plan, self.timeout, self.cluster = plan, timeout, cluster
        policies, self.problems = plan.load()
        self.policies = policies
        if not policies:
            raise UserError("no policy fits the environment:\n" + "\n".join(self.problems.values()))
        named = {policy_name(reference): reference for reference in plan.policies}
        identities = {name: policy_identity(named[name], policy) for name, policy in policies.items()}
        self.folder = folder or run_path(runs_folder(), plan, identities)
        part, parts = shard
        planned = plan.jobs(self.folder, policies)[part::parts]
        self.until_decided, self.until_broken = until_decided, until_broken
        if until_decided:
            _check_decidable(plan, list(policies), parts)
        self.store = RunStore(self.folder)
        try:
            self.store.agree("environment", plan.environment, environment_identity(plan.environment))
            for name, policy in policies.items():
                described = {"identity": identities[name], "cost": policy_cost(policy), **eyes_of(policy)}
                moved = plan.device != CPU and isinstance(policy, Movable)
                self.store.agree("policy", name, described | ({"device": plan.device} if moved else {}))
            for condition in plan.conditions:
                self.store.agree("condition", condition.name, condition_identity(condition))
            session = provenance(plan.environment, self.workers, plan.device) | {"cluster": cluster}
            self.store.note_session(session | {"until_decided": until_decided, "until_broken": until_broken})
            self.store.plan(job_key(job) for job in planned if not (until_decided or until_broken))
            if retry_errors:
                self.store.forget_errors(map(job_key, planned))
            if until_broken:
                self.store.unplan(map(job_key, planned))
            finished = self.store.finished()
        except BaseException:
            self.store.close()
            raise
        self.planned, self.jobs = planned, [job for job in planned if job_key(job) not in finished]
        self.resumed, self.expected = len(planned) - len(self.jobs), len(self.jobs)
        self.records: list[EpisodeRecord] = []

    def run(self, progress: Callable[[EpisodeRecord], None]) -> None:
        """Run every episode that is left; on KeyboardInterrupt what is done stays."""
        with self._pool() as workers:
            for jobs in self._rounds():
                for record in workers.run(jobs):
                    self.store.add(record)
                    self.records.append(record)
                    progress(record)

    def _pool(self) -> Workers | RayWorkers:
        if self.cluster is not None:
            return RayWorkers(self.cluster, self.workers, self.timeout)
        assert self.workers is not None
        return Workers(self.workers, self.timeout)

    def _rounds(self) -> Iterator[list[Job]]:
        """What to run together; what is run next may depend on it."""
        if self.until_decided:
            yield from self._until_decided()
        elif self.until_broken:
            left = set(self.jobs)
            for jobs, needless in cascade(self.folder, self.planned):
                self.expected -= len(left & {*needless})
                self.store.plan(map(job_key, jobs))
                yield [job for job in jobs if job in left]
        else:
            yield self.jobs

    def _until_decided(self) -> Iterator[list[Job]]:
        """Some episodes at a time, of the arms that are not told apart from the reference by those before."""
        race = Race(self.folder, self.plan, self.policies)
        for first in range(0, self.plan.episodes, ROUND):
            running = race.undecided(first)
            if not running:
                return
            chosen = {*running, self.plan.reference}
            episodes = range(first, min(first + ROUND, self.plan.episodes))
            self.store.plan(
                Key(name, condition.name, self.plan.suite_seed, episode)
                for name in self.policies
                if name in chosen
                for condition in self.plan.conditions
                for episode in episodes
            )
            yield [job for job in self.jobs if job.name in chosen and job.episode in episodes]

    def finish(self) -> pd.DataFrame:
        """Close the store, write the report, and return the table with raw numbers."""
        self.store.close()
        return write_report(self.folder, self.plan.reference, self.notes())

    def notes(self) -> list[str]:
        """What this process left out of the plan, and why."""
        notes = [f"left out {name}: {problem}" for name, problem in self.problems.items()]
        return notes + (Race(self.folder, self.plan, self.policies).notes() if self.until_decided else [])


def _check_processes(workers: int | None, timeout: float | None, cluster: str | None, device: str) -> None:
    if workers is not None and workers < 0:
        raise UserError(f"--workers must be at least 0, not {workers}")
    if timeout is not None and timeout <= 0:
        raise UserError(f"--timeout must be more than 0 seconds, not {timeout:g}")
    if workers == 0 and cluster is not None:
        raise UserError("--workers 0 runs everything in this process, --cluster in others; leave one of them out")
    if workers == 0 and timeout is not None:
        raise UserError("--timeout stops worker processes; with --workers 0 there are none: use --workers 1")
    if cluster is not None:
        if device != CPU:
            raise UserError(f"--cluster has policies compute on its CPUs, not on {device}; leave one of them out")
        find_cluster(cluster)


def _check_decidable(plan: Plan, policies: list[str], shards: int) -> None:
    if shards > 1:
        raise UserError("--until-decided looks at all episodes together; run it without --shard")
    if plan.reference not in policies or len(policies) < 2:
        raise UserError(
            f"--until-decided compares with {plan.reference}, so it and at least one other policy must take part, "
            f"not {', '.join(policies)}; name them with --policy, or choose another --reference"
        )


def job_key(job: Job) -> Key:
    return Key(job.name, job.condition.name, job.suite_seed, job.episode)
