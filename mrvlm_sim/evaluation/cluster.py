"""Runs episodes on a Ray cluster: the same function as on one machine, so the same records."""

import logging
import math
import os
import platform
import secrets
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from mrvlm_sim.agents.openpi import KEY_VARIABLE
from mrvlm_sim.agents.remote import TOKEN_VARIABLE
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.runner import (
    RENEWALS,
    Job,
    cannot_work,
    default_workers,
    prepare_worker,
    raised,
    run_job,
    timed_out,
    worker_died,
)
from mrvlm_sim.evaluation.runs import check_alike, fingerprint

LOCAL, AUTO = "local", "auto"
SETTINGS = {  # Ray's own, for what the user did not set
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # policies see the GPUs that they see without Ray
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed",  # the records say that
}
SECRETS = (TOKEN_VARIABLE, KEY_VARIABLE)  # of policies that are served elsewhere
GL_VARIABLES = ("MUJOCO_GL", "LP_NUM_THREADS")  # the same renderer everywhere, or frames differ
OBJECT_STORE = 80 * 2**20  # bytes, near the least that Ray accepts: records are small
ANSWER_TIME = 3.0  # seconds
START_TIME = 120.0  # seconds without any news while nobody works
LOOK_TIME = 0.5  # seconds between two looks at the clock while episodes run
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # preface and empty SETTINGS
HTTP2_SETTINGS = 4  # the frame that the other side begins with


class Worker:
    """An actor: a process somewhere in the cluster that keeps its environments and policies from job to job."""

    def __init__(self, folder: str, variables: dict[str, str], environment: str) -> None:
        os.chdir(folder)  # relative paths mean the same as in the command
        os.environ.update(variables)
        prepare_worker()
        self._identity = fingerprint(environment) | {"node": platform.node()}

    def ready(self) -> dict[str, Any]:
        """What the process is, as soon as it has started and imported what it needs."""
        return self._identity

    def run(self, job: Job) -> EpisodeRecord:
        return run_job(job)


@dataclass
class Task:
    """What an actor is doing; without a job it was asked whether it is ready."""

    actor: Any
    job: Job | None = None
    deadline: float = math.inf


class RayWorkers:
    """One actor per CPU of the cluster, or `count` of them; otherwise like `runner.Workers`.

    Nodes need this package and whatever the policies are made of, under the same paths. An actor is given nothing to
    do before it has started, so that an episode's time is its own.

    Raises:
        UserError: see `find_cluster`.
    """

    def __init__(self, address: str, count: int | None = None, timeout: float | None = None) -> None:
        self.address, self.timeout = find_cluster(address), timeout
        self._ray, self._count = _import_ray(), count
        self._new_actor: Any = None
        self._identity: dict[str, Any] = {}
        self._tasks, self._idle = dict[Any, Task](), list[Any]()
        self._failed_starts, self._failure = 0, ""
        self._last_news = math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _interrupts_deferred():  # an impatient second Ctrl-C would leave processes behind
            self._ray.shutdown()

    def run(self, jobs: Sequence[Job]) -> Iterator[EpisodeRecord]:
        """Records as they are finished, in any order.

        Raises:
            UserError: workers cannot start, however often or long it is tried.
        """
        waiting, tried, left = deque(jobs), set[Job](), len(jobs)
        if jobs:
            self._connect(jobs[0].environment)
            self._ask_idle()
            self._last_news = time.monotonic()
        while left:
            self._employ(waiting, left)
            if not self._tasks:
                raise cannot_work(self._failure)
            for job, record in self._outcomes():
                if record is None and job not in tried:
                    tried.add(job)
                    waiting.append(job)
                else:
                    left -= 1
                    yield record or worker_died(job)

    def _connect(self, environment: str) -> None:
        if self._new_actor is not None:
            return
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0}
        if self.address == LOCAL:
            self._count = self._count or default_workers()
            _start_local(self._ray, self._count)
        else:
            _connect(self._ray, self.address)
            self._count = self._count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            acceleration = [name for name in SETTINGS if "ACCEL" in name]
            options["runtime_env"] = {"env_vars": _variables(*GL_VARIABLES, *acceleration)}  # before any import
        actor, arguments = self._ray.remote(**options)(Worker), (os.getcwd(), _variables(*SECRETS), environment)
        self._new_actor = lambda: actor.remote(*arguments)
        self._identity = fingerprint(environment)

    def _ask_idle(self) -> None:
        """Find out who died since the last round, rather than at the cost of an episode."""
        for actor in self._idle:
            self._tasks[actor.ready.remote()] = Task(actor)
        self._idle.clear()

    def _employ(self, waiting: deque[Job], left: int) -> None:
        """Give jobs to whoever is idle, and start as many actors as there is work for."""
        while waiting and self._idle:
            actor, job = self._idle.pop(), waiting.popleft()
            deadline = math.inf if self.timeout is None else time.monotonic() + self.timeout
            self._tasks[actor.run.remote(job)] = Task(actor, job, deadline)
        assert self._count is not None
        wanted = min(self._count, left)
        if self._failed_starts <= RENEWALS * wanted:
            for _ in range(len(self._tasks) + len(self._idle), wanted):
                actor = self._new_actor()
                self._tasks[actor.ready.remote()] = Task(actor)

    def _outcomes(self) -> Iterator[tuple[Job, EpisodeRecord | None]]:
        """Jobs that came to an end, with None for a record if the worker died."""
        ready, _ = self._ray.wait(list(self._tasks), timeout=LOOK_TIME)
        self._lose_patience(bool(ready))
        for reference in ready:
            task = self._tasks.pop(reference)
            if task.job is None:
                self._started(reference, task.actor)
            else:
                yield task.job, self._record(reference, task.actor, task.job)
        yield from self._stop_late()

    def _lose_patience(self, news: bool) -> None:
        """Ray lets an actor wait for a free CPU forever.

        Raises:
            UserError: nobody works, and of those who are to start nothing was heard for long.
        """
        if news or any(task.job for task in self._tasks.values()):
            self._last_news = time.monotonic()
        elif time.monotonic() > self._last_news + START_TIME:
            free = self._ray.available_resources().get("CPU", 0)
            raise UserError(
                f"no worker started within {START_TIME:g} s: each needs a CPU, and the cluster has {free:g} free; "
                "free some, or use --workers without --cluster"
            )

    def _started(self, reference: Any, actor: Any) -> None:
        """Take in an actor that was asked whether it is ready.

        Raises:
            UserError: it is unlike this process.
        """
        try:
            identity = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            self._failed_starts += 1
            self._failure = str(error).strip().splitlines()[-1]
        else:
            check_alike(self._identity, identity)
            self._failed_starts = 0
            self._idle.append(actor)

    def _record(self, reference: Any, actor: Any, job: Job) -> EpisodeRecord | None:
        exceptions = self._ray.exceptions
        try:
            record = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            record = raised(job, error.cause)
        except exceptions.RayError:  # it died, or its node, or the network between
            self._ray.kill(actor)
            return None
        self._idle.append(actor)
        return record

    def _stop_late(self) -> Iterator[tuple[Job, EpisodeRecord]]:
        now = time.monotonic()
        late = [reference for reference, task in self._tasks.items() if task.deadline < now]
        running = self._ray.wait(late, num_returns=len(late), timeout=0)[1] if late else []
        for reference in running:
            task = self._tasks.pop(reference)
            assert task.job is not None
            self._ray.kill(task.actor)
            yield task.job, timed_out(task.job, self.timeout)


def find_cluster(address: str) -> str:
    """Find out in seconds whether there is a cluster, and where; Ray itself tries for minutes.

    Raises:
        UserError: Ray is not installed or in use already, the address is none, or no Ray answers there.
    """
    if _import_ray().is_initialized():
        raise UserError("this process uses Ray already; call ray.shutdown() first, or use --workers without --cluster")
    if address == AUTO:
        address = _running_cluster()
    if address == LOCAL:
        return LOCAL
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:  # such as a port that is no number
        host = port = None
    if not host or not port:
        remedy = "run the command on a node of the cluster; from elsewhere (ray://) is not supported"
        raise UserError(f"--cluster must be local, auto or HOST:PORT, not {address!r}; {remedy}")
    try:
        greeting = _greeting(host, port)
    except OSError as error:
        raise _no_cluster(address, str(error)) from error
    if greeting[3:4] != bytes([HTTP2_SETTINGS]):
        raise _no_cluster(address, "what listens there is something else; Ray's port is 6379 unless it was chosen")
    return address


def _running_cluster() -> str:
    """Which cluster `auto` means: RAY_ADDRESS, or the one that this machine is a node of."""
    from ray._private.services import canonicalize_bootstrap_address  # in public, Ray tells only when connected

    try:
        return canonicalize_bootstrap_address(AUTO) or LOCAL
    except (ConnectionError, ValueError) as error:
        raise _no_cluster("auto (RAY_ADDRESS, or what runs here)", str(error).split(". ")[0]) from error


def _greeting(host: str, port: int) -> bytes:
    """What a server answers to a client that speaks as Ray's do."""
    with socket.create_connection((host, port), ANSWER_TIME) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return bytes([0, 0, 0, HTTP2_SETTINGS])  # not to be had without certificates
        connection.sendall(HTTP2_HELLO)
        return connection.recv(9)


def _no_cluster(address: str, why: str) -> UserError:
    remedy = "run the command on a node of a cluster (`ray start --head` starts one), or use --cluster local"
    return UserError(f"no Ray cluster at {address}: {why}; {remedy}")


def _import_ray() -> Any:
    for name, value in SETTINGS.items():  # some are read when ray is imported
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError("--cluster needs Ray: pip install 'mrvlm_sim[ray]'") from error
    return ray


def _start_local(ray: Any, count: int) -> None:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes one into the home folder
    with _interrupts_deferred():  # half started, Ray could not be stopped
        try:
            ray.init(
                LOCAL, num_cpus=count, include_dashboard=False, object_store_memory=OBJECT_STORE, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise UserError(f"Ray does not start on this machine: {error}; use --workers without --cluster") from error


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ImportError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, str(error).strip().rstrip(".")) from error


def _variables(*names: str) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block; it can only be caught in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt
