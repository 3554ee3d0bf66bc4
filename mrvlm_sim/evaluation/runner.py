"""Runs episodes on this machine, in this process or in several; the order of work never changes a record."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context, resource_tracker
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import torch
from pebble import ProcessExpired, ProcessPool

from mrvlm_sim.agents.policy import CPU, Policy
from mrvlm_sim.agents.registry import load_for
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.evaluation.video import EpisodeVideo
from mrvlm_sim.gl import one_render_thread
from mrvlm_sim.sim.suite_env import SuiteEnv
from mrvlm_sim.tasks import make_env

RENEWALS = 2  # of all processes, when they die without work


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
    trust_pickle: bool = False
    device: str = CPU  # of torch, where the policy computes


def default_workers() -> int:
    """One process per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that keep their environments and policies from job to job; with 0, this process does it all itself.

    An episode that takes longer than `timeout` seconds ends as an error. One whose worker dies is tried once more in
    another, and then ends as an error. Without processes of their own, nothing protects from either.
    """

    def __init__(self, count: int, timeout: float | None = None) -> None:
        self.count, self.timeout, self._renewed = count, timeout, 0
        self._pool = _new_pool(count) if count else None
        # Not `concurrent.futures.wait`: interrupted while it takes the locks of all futures, it never gives them back.
        self._done = SimpleQueue[Future[EpisodeRecord]]()

    def __enter__(self) -> Self:
        if self._pool is None:
            _policy.cache_clear()  # files may have changed since the last run in this process
            _environment.cache_clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, jobs: Sequence[Job]) -> Iterator[EpisodeRecord]:
        """Records as they are finished, in any order."""
        if self._pool is None:
            prepare_worker()
            yield from map(run_job, jobs)
            return
        pending, tried = self._submit(jobs), set[Job]()
        while pending:
            future = self._done.get()
            if future not in pending:  # of a pool that is gone
                continue
            job, error = pending.pop(future), future.exception()
            if isinstance(error, BrokenProcessPool):  # one died while none had work
                self._renew()
                pending = self._submit([job, *pending.values()])
            elif isinstance(error, ProcessExpired) and job not in tried:
                tried.add(job)
                pending |= self._submit([job])
            else:
                yield _record(job, future, self.timeout)

    def _submit(self, jobs: Sequence[Job]) -> "dict[Future[EpisodeRecord], Job]":
        assert self._pool is not None
        with _interrupts_blocked():  # workers inherit this: Ctrl-C is the parent's business
            futures: dict[Future[EpisodeRecord], Job] = {
                self._pool.schedule(run_job, args=(job,), timeout=self.timeout): job for job in jobs
            }
            for future in futures:
                future.add_done_callback(self._done.put)
        return futures

    def _renew(self) -> None:
        """Start new processes.

        Raises:
            UserError: it was tried before, in vain.
        """
        self._renewed += 1
        if self._renewed > RENEWALS:
            raise cannot_work("out of memory, or a script without `if __name__ == '__main__'`?")
        self._stop()
        self._pool = _new_pool(self.count)

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()


def _new_pool(count: int) -> ProcessPool:
    return ProcessPool(count, context=get_context("spawn"), initializer=prepare_worker)


def _record(job: Job, future: Future, timeout: float | None) -> EpisodeRecord:
    """What a finished future tells of its job."""
    match future.exception():
        case None:
            return future.result()
        case TimeoutError():
            return timed_out(job, timeout)
        case ProcessExpired():
            return worker_died(job)
        case other:
            return raised(job, other)


def cannot_work(cause: str) -> UserError:
    """The error for new processes that are of no more use than the ones they replace."""
    return UserError(
        f"worker processes die before they can work ({cause}); what is finished is kept, the same command goes on"
    )


def timed_out(job: Job, timeout: float | None) -> EpisodeRecord:
    """The record of an episode that was stopped."""
    return _failed(job, f"TimeoutError: not finished after {timeout:g} s")


def worker_died(job: Job) -> EpisodeRecord:
    """The record of an episode whose worker died, and the next one as well."""
    return _failed(job, "WorkerDied: two worker processes died of it (out of memory, or a crash in native code?)")


def raised(job: Job, error: BaseException) -> EpisodeRecord:
    """The record of an episode that could not be begun."""
    return _failed(job, f"{type(error).__name__}: {error}")


def _failed(job: Job, error: str) -> EpisodeRecord:
    return EpisodeRecord(job.environment, job.name, job.condition.name, job.suite_seed, job.episode, error=error)


def run_job(job: Job) -> EpisodeRecord:
    """One job in this process; environments and policies are kept between jobs."""
    env = _environment(job.environment)
    try:
        policy = _policy(job.policy, job.environment, job.trust_pickle, job.device)
    except UserError as error:  # it could be loaded once, when the run began
        return raised(job, error)
    arguments = env, job.environment, policy, job.name, job.condition, job.suite_seed, job.episode
    if job.video is None:
        return run_episode(*arguments)
    with EpisodeVideo(job.video) as video:
        return run_episode(*arguments, watch=video.add)


@cache
def _environment(name: str) -> SuiteEnv:
    return make_env(name)


@cache
def _policy(reference: str, environment: str, trust_pickle: bool, device: str) -> Policy:
    return load_for(reference, _environment(environment), trust_pickle, device)


def prepare_worker() -> None:
    """What a process does before its first job."""
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
