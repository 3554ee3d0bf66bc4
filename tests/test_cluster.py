"""On a Ray cluster the same episodes give the same records, and trouble costs what it costs on one machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine import CLEAN, TROUBLE, carry_out, errors, outcomes, plan_of
from processes import interrupt, nothing_left, start, wait_for

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation import cluster
from mrvlm_sim.evaluation.cluster import RayWorkers, Worker, find_cluster
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.store import read_episodes, read_sessions
from mrvlm_sim.paths import CHECKOUT

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for left processes in /proc")
HEAD = """
import ray, sys
context = ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of this machine with two CPUs that is there already."""
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), "RAY_AUTH_MODE": "disabled"}
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], env=variables, text=True, stdin=pipe, stdout=pipe, stderr=quiet
    ) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        yield next(line.strip() for line in head.stdout if line[0].isdigit())
        head.stdin.close()


def test_the_same_records_on_a_cluster(address: str, tiny_folder: Path, tmp_path: Path) -> None:
    plan = plan_of("expert", "random", str(tiny_folder), episodes=2)
    expected = carry_out(plan, tmp_path / "here")
    assert carry_out(plan, tmp_path / "there", workers=None, cluster=address) == expected
    assert len(expected) == 6
    assert [session["cluster"] for session in read_sessions(tmp_path / "there")] == [address]


def test_trouble_costs_the_episode_and_never_the_run(address: str, tmp_path: Path) -> None:
    """Also when the policy hangs with the interpreter locked.

    In the time limit, a fresh worker on shared cores makes its environment, too.
    """
    timeout = 15.0
    (tmp_path / "trouble.py").write_text(TROUBLE)
    expected = errors(timeout) | {"HangsInC": errors(timeout)["Hangs"]}
    plan = plan_of(*(f"{tmp_path / 'trouble.py'}:{name}" for name in expected), episodes=2)
    rows = carry_out(plan, tmp_path / "run", workers=None, cluster=address, timeout=timeout)
    calm = carry_out(plan_of("noop", episodes=2), tmp_path / "calm")
    red = {key.episode for key, row in calm.items() if "put the red" in str(row["instruction"])}
    assert len(red) == 1
    assert {(key.policy, key.episode): row["error"] for key, row in rows.items()} == {
        (name, episode): error if episode in red else "" for name, error in expected.items() for episode in range(2)
    }


def test_workers_that_die_without_work_are_replaced(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    plan = plan_of("noop", episodes=4)
    jobs = plan.jobs(tmp_path, plan.load()[0])
    with RayWorkers("auto", count=1) as workers:
        first = list(workers.run(jobs[:2]))
        [actor] = workers._idle
        ray.kill(actor)
        second = list(workers.run(jobs[2:]))
    assert [record.error for record in first + second] == [""] * 4


def test_workers_that_cannot_start_end_the_run(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no such renderer")
    plan = plan_of("noop", episodes=1)
    message = r"die before they can work \(.*no such renderer\); what is finished is kept"
    with RayWorkers(address) as workers, pytest.raises(UserError, match=message):
        list(workers.run(plan.jobs(tmp_path, {"noop": None})))  # type: ignore[dict-item]


class Reference:
    """What will be known: a value, an error to raise, or never anything."""

    def __init__(self, answer: object) -> None:
        self.answer = answer


class FakeRay:
    """As much of Ray as workers use; what actors answer is written down beforehand, in the order of the questions."""

    exceptions = ray.exceptions

    def __init__(self, ready: Iterable[object], run: Iterable[object] = ()) -> None:
        self._ready, self._run = iter(ready), iter(run)
        self.init = self.kill = self.shutdown = self.is_initialized = lambda *_, **__: None

    def available_resources(self) -> dict[str, float]:
        return {"GPU": 1.0}

    def remote(self, **_: object) -> object:
        return lambda _: SimpleNamespace(remote=self._start)

    def _start(self, *arguments: object) -> object:
        self.told = arguments
        ready = SimpleNamespace(remote=lambda: Reference(next(self._ready)))
        return SimpleNamespace(ready=ready, run=SimpleNamespace(remote=lambda _: Reference(next(self._run))))

    def wait(self, references: Sequence[Reference], **_: object) -> tuple[list[Reference], list[Reference]]:
        assert references, "waits for nothing"
        known = [reference for reference in references if reference.answer is not NEVER]
        return known, [reference for reference in references if reference not in known]

    def get(self, reference: Reference) -> object:
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer


VERSIONS = {"mrvlm-sim": "1", "mujoco": "4", "numpy": "2", "torch": "3", "pandas": "3"}
READY = {"versions": VERSIONS, "standard_frame": "0123", "renderer": "llvmpipe", "node": "n7"}
DONE, NEVER = "done", "never"
DIES = ray.exceptions.RayError("no room")


class TestActors:
    """What cannot be had from a real cluster when it is wanted."""

    @pytest.fixture(autouse=True)
    def _driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "fingerprint", lambda _: READY)
        monkeypatch.setattr(cluster, "START_TIME", 0.2)
        self.monkeypatch = monkeypatch

    def run(self, fake: FakeRay, count: int = 1) -> list[object]:
        """Two episodes."""
        self.monkeypatch.setattr(cluster, "_import_ray", lambda: fake)
        with RayWorkers("local", count, timeout=0.1) as workers:
            return list(workers.run([Job("pick_place", "noop", "noop", CLEAN, 0, episode) for episode in range(2)]))

    def test_nobody_starts_any_more_when_the_last_worker_dies(self) -> None:
        with pytest.raises(UserError, match=r"die before they can work \(no room\)"):
            self.run(FakeRay([READY, *[DIES] * 5], [NEVER]), count=2)

    def test_a_start_that_succeeds_forgives_those_before(self) -> None:
        assert self.run(FakeRay([DIES, DIES, READY] * 2, [DIES, DONE, DONE])) == [DONE, DONE]

    def test_nobody_waits_forever_for_a_cpu(self) -> None:
        with pytest.raises(UserError, match=r"no worker started within 0\.2 s: .* the cluster has 0 free; free some"):
            self.run(FakeRay([NEVER]))

    @pytest.mark.parametrize(
        ("difference", "told"),
        [
            ({"versions": VERSIONS | {"torch": "2", "numpy": "1"}}, "numpy 1, not 2; torch 2, not 3;"),
            ({"standard_frame": "4567", "renderer": "H200"}, "another standard frame, drawn by H200, not llvmpipe;"),
        ],
    )
    def test_a_node_that_gives_other_episodes_is_refused(self, difference: dict[str, object], told: str) -> None:
        with pytest.raises(UserError, match=f"node n7 is unlike this machine: it has {told} give all nodes"):
            self.run(FakeRay([READY | difference]))

    def test_what_changes_no_episode_may_differ(self) -> None:
        other = READY | {"versions": VERSIONS | {"pandas": "1"}, "renderer": "another llvmpipe"}
        assert self.run(FakeRay([other], [DONE, DONE])) == [DONE, DONE]

    def test_secrets_reach_actors(self) -> None:
        secrets = {"MRVLM_SIM_TOKEN": "abc", "OPENPI_API_KEY": "def"}
        for name, value in secrets.items():
            self.monkeypatch.setenv(name, value)
        fake = FakeRay([READY], [DONE, DONE])
        self.run(fake)
        assert fake.told == (os.getcwd(), secrets, "pick_place")

    def test_a_node_without_the_folder_is_no_use(self) -> None:
        with pytest.raises(FileNotFoundError, match="/no/such/folder"):
            Worker("/no/such/folder", {}, "pick_place")


class TestBadInput:
    @pytest.mark.parametrize("address", ["nonsense", "", "host:port", "http://host:1", "[::1", "ray://head:10001"])
    def test_what_is_no_address(self, address: str) -> None:
        with pytest.raises(UserError, match=r"local, auto or HOST:PORT, not '.*'; run the command on a node of"):
            find_cluster(address)

    @pytest.mark.parametrize("address", ["127.0.0.1:{port}", "auto"])
    def test_nothing_answers(self, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        address, began = address.format(port=port), time.monotonic()
        with pytest.raises(UserError, match=rf"no Ray cluster at \S+:{port}: .*refused; run the command on a node of"):
            carry_out(plan_of("noop", episodes=1), tmp_path / "run", cluster=address, workers=None)
        assert time.monotonic() - began < 5
        assert not (tmp_path / "run").exists()

    def test_something_mute_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "ANSWER_TIME", 0.2)
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            pytest.raises(UserError, match=r"no Ray cluster at .*: timed out; run the"),
        ):
            find_cluster(f"127.0.0.1:{server.getsockname()[1]}")

    @pytest.mark.parametrize(
        ("variable", "why"), [("", "Could not find any running Ray"), ("ray://head:1", "Invalid address format")]
    )
    def test_auto_finds_nothing(self, variable: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
        monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: None)
        with pytest.raises(UserError, match=rf"no Ray cluster at auto \(RAY_ADDRESS, .*\): {why}.*; run the"):
            find_cluster("auto")

    def test_the_callers_own_ray_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        with pytest.raises(UserError, match=r"this process uses Ray already; call ray\.shutdown\(\) first"):
            RayWorkers("local")

    def test_without_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"pip install 'mrvlm_sim\[ray\]'"):
            find_cluster("local")

    def test_a_cluster_without_workers(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="--workers 0 runs everything in this process, --cluster in others"):
            carry_out(plan_of("noop", episodes=1), tmp_path, workers=0, cluster="local")


@linux
class TestLocal:
    """Ray on this machine, started by the command and gone with it."""

    COMMAND = ("eval", "--env", "pick_place", "--policy", "expert", "--no-baselines", "--cluster", "local")

    def test_it_leaves_nothing_but_the_records(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "home").mkdir()
        options = ("--episodes", "3", "--workers", "2", "--video", "1", "--output", "run")
        with start(*self.COMMAND, *options, cwd=tmp_path) as process:
            out, err = nothing_left(process)
        assert process.returncode == 0, err
        assert err == ""
        assert "(3/3)" in out
        assert "ray" not in out.lower()
        assert (tmp_path / "run" / "videos" / "expert-clean-000.mp4").stat().st_size > 0
        assert outcomes(tmp_path / "run") == carry_out(plan_of("expert", episodes=3), tmp_path / "here")
        assert not list((tmp_path / "home").glob(".ray*"))

    def test_ctrl_c_keeps_what_is_done(self, tmp_path: Path) -> None:
        """A terminal sends it to all processes of the group; impatient people press it twice."""
        options, run = ("--episodes", "5000", "--workers", "2", "--output", "run"), tmp_path / "run"
        with start(*self.COMMAND, *options, cwd=tmp_path) as process:
            begun = wait_for(lambda: (run / "run.sqlite").exists() and len(read_episodes(run)) > 3, 90)
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
            out, err = interrupt(process, os.killpg)
        done = read_episodes(run)
        assert begun
        assert process.returncode == 130
        assert "Traceback" not in err
        assert 3 <= len(done) < 5000
        assert (done["error"] == "").all()
        assert f"{5000 - len(done)} of 5000 episodes are missing" in out
