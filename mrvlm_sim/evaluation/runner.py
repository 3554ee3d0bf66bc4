"""Runs episodes on this machine, in this process or in several; the order of work never changes a record."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from typing import Self

import torch
from pebble import ProcessExpired, ProcessPool

from mrvlm_sim.agents.policy import Policy, check_compatible
from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.evaluation.episode import Condition, EpisodeRecord, run_episode
from mrvlm_sim.evaluation.video import EpisodeVideo
from mrvlm_sim.gl import one_render_thread
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_env


@dataclass(frozen=True)
class Job:
    """One episode to run; `policy` is a reference for `load_policy`, `video` a file to write or None."""

    environment: str
    policy: str
    name: str
    condition: Condition
    suite_seed: int
    episode: int
    video: Path | None = None


def run_jobs(jobs: Sequence[Job], workers: int, timeout: float | None = None) -> Iterator[EpisodeRecord]:
    """Records of all jobs as they are finished, in any order; see `Workers`."""
    with Workers(workers, timeout) as pool:
        yield from pool.run(jobs)


class Workers:
    """Processes that keep their environments and policies from job to job; with 0, this process does it all itself.

    An episode that takes longer than `timeout` seconds ends as an error. One whose worker dies is tried once more in
    another, and then ends as an error. Without processes of their own, nothing protects from either.
    """

    def __init__(self, count: int, timeout: float | None = None) -> None:
        self.timeout = timeout
        self._pool: ProcessPool | None = None
        if count:
            self._pool = ProcessPool(count, context=get_context("spawn"), initializer=_prepare_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()

    def run(self, jobs: Sequence[Job]) -> Iterator[EpisodeRecord]:
        """Records as they are finished, in any order."""
        if self._pool is None:
            _prepare_worker()
            yield from map(run_job, jobs)
            return
        with _interrupts_blocked():  # workers inherit this: Ctrl-C is the parent's business
            pending = {self._submit(job): job for job in jobs}
        tried: set[Job] = set()
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                job = pending.pop(future)
                if isinstance(future.exception(), ProcessExpired) and job not in tried:
                    tried.add(job)
                    pending[self._submit(job)] = job
                else:
                    yield _record(job, future, self.timeout)

    def _submit(self, job: Job) -> "Future[EpisodeRecord]":
        assert self._pool is not None
        return self._pool.schedule(run_job, args=(job,), timeout=self.timeout)


def _record(job: Job, future: Future, timeout: float | None) -> EpisodeRecord:
    """What a finished future tells of its job."""
    match future.exception():
        case None:
            return future.result()
        case TimeoutError():
            error = f"TimeoutError: not finished after {timeout:g} s"
        case ProcessExpired() as died:
            error = f"WorkerDied: two worker processes died of it (exit code {died.exitcode})"
        case other:
            error = f"{type(other).__name__}: {other}"
    return EpisodeRecord(job.environment, job.name, job.condition.name, job.suite_seed, job.episode, error=error)


def run_job(job: Job) -> EpisodeRecord:
    """One job in this process; environments and policies are kept between jobs."""
    env = _environment(job.environment)
    arguments = env, job.environment, _policy(job.policy, job.environment), job.name, job.condition
    if job.video is None:
        return run_episode(*arguments, job.suite_seed, job.episode)
    with EpisodeVideo(job.video) as video:
        return run_episode(*arguments, job.suite_seed, job.episode, watch=video.add)


@cache
def _environment(name: str) -> ManipulationEnv:
    return make_env(name)


@cache
def _policy(reference: str, environment: str) -> Policy:
    policy = load_policy(reference)
    check_compatible(policy, _environment(environment))
    return policy


def _prepare_worker() -> None:
    torch.set_num_threads(1)  # the same arithmetic for any number of workers
    one_render_thread()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    resource_tracker.ensure_running()  # its start would unblock them again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # one that came meanwhile is delivered now
