"""However episodes are scheduled, stopped or lost, a run ends with the same records."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from engine import CLEAN, TROUBLE, carry_out, errors, outcomes, plan_of

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.evaluate import Evaluation, job_key
from mrvlm_sim.evaluation.merge import merge_runs
from mrvlm_sim.evaluation.runner import Workers
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import planned_keys, read_episodes, read_sessions

pytestmark = pytest.mark.slow
EPISODES = 8
TIMEOUT = 4.0


@pytest.fixture
def plan(tiny_folder: Path) -> Plan:
    return plan_of("expert", "random", str(tiny_folder), episodes=EPISODES)


def test_the_same_24_episodes_however_they_are_run(plan: Plan, tmp_path: Path) -> None:
    expected = carry_out(plan, tmp_path / "one", workers=1)
    assert len(expected) == 24
    assert all(row["error"] == "" and row["end_hash"] for row in expected.values())
    for workers in (2, 3):
        assert carry_out(plan, tmp_path / str(workers), workers) == expected
    shards = [tmp_path / f"shard{part}" for part in range(2)]
    for part, shard in enumerate(shards):
        assert len(carry_out(plan, shard, shard=(part, 2))) == 12
    merge_runs(tmp_path / "merged", shards)
    assert outcomes(tmp_path / "merged") == expected
    assert sorted(planned_keys(tmp_path / "merged")) == sorted(planned_keys(tmp_path / "one"))
    backwards = Evaluation(plan, tmp_path / "backwards", workers=0)
    backwards.jobs.reverse()
    backwards.run(lambda _: None)
    backwards.finish()
    assert outcomes(tmp_path / "backwards") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes")
def test_killed_and_resumed_it_has_the_same_records(plan: Plan, tmp_path: Path) -> None:
    arguments = [part for policy in plan.policies for part in ("--policy", policy)]
    command = [sys.executable, "-m", "mrvlm_sim.cli", "eval", "--env", "pick_place", *arguments]
    command += ["--no-baselines", "--episodes", str(EPISODES), "--workers", "2", "--output", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run" / "run.sqlite").exists() or len(read_episodes(tmp_path / "run")) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    before = outcomes(tmp_path / "run")
    assert 4 <= len(before) < 24
    evaluation = Evaluation(plan, tmp_path / "run", workers=0)
    assert evaluation.resumed == len(before)
    assert {job_key(job) for job in evaluation.jobs}.isdisjoint(before)
    evaluation.run(lambda _: None)
    evaluation.finish()
    assert outcomes(tmp_path / "run") == carry_out(plan, tmp_path / "whole")
    assert len(read_sessions(tmp_path / "run")) == 2


def test_arms_and_episodes_are_added(tmp_path: Path) -> None:
    carry_out(plan_of("noop", episodes=2), tmp_path)
    carry_out(plan_of("noop", "expert", episodes=3), tmp_path)
    rows = read_episodes(tmp_path)
    assert rows.groupby("policy")["episode"].apply(sorted).to_dict() == {"noop": [0, 1, 2], "expert": [0, 1, 2]}
    assert len(read_sessions(tmp_path)) == 2


def test_another_policy_of_the_same_name_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(TROUBLE)
    carry_out(plan_of(f"{mine}:Still", episodes=1), tmp_path / "run")
    mine.write_text(TROUBLE + "\n# changed\n")
    with pytest.raises(UserError, match=r"was begun with another policy 'Still': identity\.source was '\w+', it is"):
        carry_out(plan_of(f"{mine}:Still", episodes=2), tmp_path / "run")
    assert len(read_episodes(tmp_path / "run")) == 1


@pytest.mark.parametrize(("policy", "error"), errors(TIMEOUT).items())
def test_trouble_costs_the_episode_and_never_the_run(policy: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "trouble.py").write_text(TROUBLE)
    plan = plan_of(f"{tmp_path / 'trouble.py'}:{policy}", episodes=6)
    rows = carry_out(plan, tmp_path / "run", workers=2, timeout=TIMEOUT)
    calm = carry_out(plan_of(f"{tmp_path / 'trouble.py'}:Still", episodes=6), tmp_path / "calm")
    red = {key.episode for key, row in calm.items() if "put the red" in str(row["instruction"])}
    assert 0 < len(red) < 6
    assert {key.episode: row["error"] for key, row in rows.items()} == {e: error if e in red else "" for e in range(6)}
    assert not any(row["success"] for row in rows.values())


@pytest.mark.skipif(sys.platform != "linux", reason="kills processes")
def test_workers_that_die_without_work_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("expert", "random", episodes=3)
    jobs = plan.jobs(tmp_path, plan.load()[0])
    with Workers(1) as workers:
        first = list(workers.run(jobs[:3]))
        for child in multiprocessing.active_children():
            child.kill()
        second = list(workers.run(jobs[3:]))
    assert [record.error for record in first + second] == [""] * 6


def test_errors_are_tried_again_when_asked(tmp_path: Path) -> None:
    (tmp_path / "trouble.py").write_text(TROUBLE)
    plan = plan_of(f"{tmp_path / 'trouble.py'}:Raises", episodes=6)
    failed = sum(row["error"] != "" for row in carry_out(plan, tmp_path / "run").values())
    assert Evaluation(plan, tmp_path / "run", workers=0, retry_errors=True).resumed == 6 - failed < 6


def test_a_record_says_the_same_from_any_process(plan: Plan, tmp_path: Path) -> None:
    """Also the fields that only the store would show."""
    jobs = plan.jobs(tmp_path, plan.load()[0])[::7]

    def records(workers: int) -> list[dict]:
        with Workers(workers) as pool:
            rows = sorted(pool.run(jobs), key=lambda record: (record.policy, record.episode))
        return [asdict(row) | {"latency_ms": []} for row in rows]

    assert records(0) == records(2)


class TestUntilDecided:
    def test_it_stops_when_arms_are_told_apart(self, tmp_path: Path) -> None:
        (tmp_path / "trouble.py").write_text(TROUBLE)
        policies = ("expert", f"{tmp_path / 'trouble.py'}:Still", "noop")
        plan = Plan("pick_place", policies, (CLEAN,), 0, 40, reference="noop")
        carry_out(plan, tmp_path / "run", until_decided=True)
        rows = read_episodes(tmp_path / "run")
        assert rows.groupby("policy").size().to_dict() == {"expert": 10, "Still": 40, "noop": 40}
        assert len(planned_keys(tmp_path / "run")) == len(rows)
        told = (tmp_path / "run" / "table.md").read_text()
        assert "expert is told apart from noop after 10 episodes (e-value 93.1, needed 40)" in told
        assert "not told apart from noop so far: Still" in told

    def test_an_interruption_changes_nothing(self, tmp_path: Path) -> None:
        plan = Plan("pick_place", ("expert", "noop"), (CLEAN,), 0, 40, reference="noop")
        evaluation = Evaluation(plan, tmp_path / "run", workers=0, until_decided=True)

        def interrupt(_: EpisodeRecord) -> None:
            if len(evaluation.records) == 7:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluation.run(interrupt)
        evaluation.finish()
        assert "13 of 20 episodes are missing" in (tmp_path / "run" / "table.md").read_text()
        resumed = carry_out(plan, tmp_path / "run", until_decided=True)
        assert resumed == carry_out(plan, tmp_path / "whole", until_decided=True)

    @pytest.mark.parametrize(
        ("policies", "options", "message"),
        [
            (("expert", "noop"), {"shard": (0, 2)}, "looks at all episodes together; run it without --shard"),
            (("expert", "random"), {}, "compares with noop, so it and at least one other .* not expert, random"),
            (("noop",), {}, "at least one other policy must take part, not noop"),
        ],
    )
    def test_what_makes_no_sense(
        self, policies: tuple[str, ...], options: dict[str, object], message: str, tmp_path: Path
    ) -> None:
        plan = Plan("pick_place", policies, (CLEAN,), 0, 20, reference="noop")
        with pytest.raises(UserError, match=message):
            carry_out(plan, tmp_path / "run", until_decided=True, **options)
