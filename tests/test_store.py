"""A run's file: rows are there whole or not at all, keys are unique, what a run is made of does not change."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.merge import merge_runs
from mrvlm_sim.evaluation.migrate import ADDED, SCHEMA
from mrvlm_sim.evaluation.store import (
    FILE,
    Key,
    RunStore,
    planned_keys,
    read_episodes,
    read_log,
    read_parts,
    read_sessions,
)


def key(policy: str = "mine", episode: int = 0) -> Key:
    return Key(policy, "clean", 0, episode)


def record(**values: Any) -> EpisodeRecord:
    return EpisodeRecord("pick_place", values.pop("policy", "mine"), "clean", 0, values.pop("episode", 0), **values)


def filled(folder: Path, episodes: list[int], **values: Any) -> Path:
    """A run with some episodes of one policy."""
    with RunStore(folder) as store:
        store.agree("policy", "mine", {"identity": {"version": 1}})
        store.note_session({"of": folder.name})
        store.plan(key(episode=episode) for episode in episodes)
        for episode in episodes:
            store.add(record(episode=episode, **values))
    return folder


@pytest.mark.parametrize(
    "error",
    ["", "NA", 'ValueError: "two", or\nthree\r\nlines; ünï©ødé ☃', "UnicodeDecodeError: \udcff is no character"],
)
def test_what_is_written_is_read(tmp_path: Path, error: str) -> None:
    state, actions = np.arange(4.0), np.linspace(-1, 1, 10, dtype=np.float32).reshape(2, 5)
    written = record(
        success=error == "", steps=7, reward=1.0, instruction='put the "red", cube', largest_change=4,
        start_hash="0012", frame_hash="1e5", end_hash="ab", error=error, latency_ms=[1.25, 2.5],
        initial_state=state.tobytes(), actions=actions.tobytes(),
    )  # fmt: skip
    with RunStore(tmp_path / "run") as store:
        store.plan([key()])
        store.add(written)
        (before,) = read_episodes(tmp_path / "run").to_dict("records")
    (after,) = read_episodes(tmp_path / "run").to_dict("records")
    assert before == after
    expected = asdict(written) | {
        "latency_ms": "1.250 2.500",
        "error": error.encode("utf-8", "backslashreplace").decode(),
    }
    assert after == {name: value for name, value in expected.items() if name not in ("initial_state", "actions")}
    log = read_log(tmp_path / "run", key())
    assert all((a == b).all() for a, b in zip(log, (state, actions.ravel()), strict=True))


def test_rows_come_in_the_order_of_the_plan(tmp_path: Path) -> None:
    planned = [key("b", 0), key("b", 1), key("b", 10), key("a", 0), key("a", 1)]
    with RunStore(tmp_path) as store:
        store.plan(planned)
        for policy, episode in (("a", 0), ("b", 10), ("b", 1), ("b", 0)):
            store.add(record(policy=policy, episode=episode))
        assert store.finished() == set(planned[:4])
    rows = read_episodes(tmp_path)
    assert list(zip(rows["policy"], rows["episode"], strict=True)) == [(k.policy, k.episode) for k in planned[:4]]
    assert planned_keys(tmp_path) == planned


def test_an_episode_is_there_once(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.plan([key(), key()])
        store.add(record())
        with pytest.raises(sqlite3.IntegrityError):
            store.add(record(success=True))
    assert len(planned_keys(tmp_path)) == len(read_episodes(tmp_path)) == 1
    assert not read_episodes(tmp_path)["success"].any()


def test_errors_can_be_forgotten_and_nothing_else(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.plan(key(episode=episode) for episode in range(3))
        for episode, error in enumerate(["", "ValueError: no", ""]):
            store.add(record(episode=episode, error=error))
        store.add(record(policy="other", error="ValueError: no"))
        assert store.forget_errors([key(episode=0), key(episode=1)]) == 1
        assert store.finished() == {key(episode=0), key(episode=2), key("other")}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RunStore(tmp_path):
        with pytest.raises(UserError, match=r"another process is writing to .*choose another --output"):
            RunStore(tmp_path)
        assert read_episodes(tmp_path).empty
    RunStore(tmp_path).close()


def test_what_a_run_is_made_of_does_not_change(tmp_path: Path) -> None:
    was = {"card": {"execute": 4, "cameras": {"wrist": {"patch": 16}}}, "sha256": "ab"}
    now = {"card": {"execute": 4, "cameras": {"wrist": {"patch": 32}}}, "sha256": "ab"}
    with RunStore(tmp_path) as store:
        store.agree("policy", "mine", was)
    with RunStore(tmp_path) as store:
        store.agree("policy", "mine", was)
        store.agree("policy", "yours", now)
        with pytest.raises(UserError, match=r"another policy 'mine': card\.cameras\.wrist\.patch was 16, it is 32"):
            store.agree("policy", "mine", now)
    assert read_parts(tmp_path, "policy") == {"mine": was, "yours": now}


def test_a_run_is_of_one_environment(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.agree("environment", "reach", {})
        with pytest.raises(UserError, match="is a run of reach, not of push; choose another --output"):
            store.agree("environment", "push", {})


def test_a_kill_at_the_very_beginning_does_no_harm(tmp_path: Path) -> None:
    for name in ("run.partial", "run.partial-wal", "run.partial-journal"):
        (tmp_path / name).write_bytes(b"half")
    filled(tmp_path, [0])
    assert len(read_episodes(tmp_path)) == 1
    assert not list(tmp_path.glob("run.partial*"))


def test_a_run_that_may_not_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, [0, 1])
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    assert len(read_episodes(tmp_path)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run.sqlite", ".lock"}


class TestWhatIsRefused:
    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no run in .*run\.sqlite is missing"):
            read_episodes(tmp_path)

    def test_a_run_of_the_first_schema_is_read_and_brought_up_to_date(self, tmp_path: Path) -> None:
        new = {"environments": ["pick_place"], "network": {}, "training": {"stride": 2, "method": "bc"}}
        old = {"environment": "pick_place", "network": {}, "training": {"method": "bc"}}
        with RunStore(tmp_path) as store:
            store.agree("policy", "arm", {"identity": {"card": old}, "cost": {}})
            store.agree("policy", "expert", {"identity": {"baseline": "expert"}, "cost": {}})
        with sqlite3.connect(tmp_path / FILE) as connection:
            connection.execute("PRAGMA user_version = 1")
        assert read_parts(tmp_path, "policy")["arm"]["identity"]["card"] == new
        with RunStore(tmp_path) as store:
            store.agree("policy", "arm", {"identity": {"card": new}, "cost": {}})
            store.agree("policy", "expert", {"identity": {"baseline": "expert"}, "cost": {}})
        with sqlite3.connect(tmp_path / FILE) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)

    def test_what_attacks_cost_is_nothing_in_runs_that_did_not_keep_it(self, tmp_path: Path) -> None:
        """Runs of schema 2 are read, merged and gone on with."""
        for name in ("old", "older"):
            filled(tmp_path / name, [0, 1])
            with sqlite3.connect(tmp_path / name / FILE) as connection:
                for column in ADDED:
                    connection.execute(f"ALTER TABLE episodes DROP COLUMN {column}")
                connection.execute("PRAGMA user_version = 2")
        assert (read_episodes(tmp_path / "old")[list(ADDED)] == 0).all(axis=None)
        with RunStore(tmp_path / "new") as store:
            store.absorb([tmp_path / "old"])
            store.absorb([tmp_path / "older"])
        assert len(read_episodes(tmp_path / "new")) == 2
        filled(tmp_path / "old", [2], forwards=5, action_deviation=0.5)
        assert read_episodes(tmp_path / "old")["forwards"].tolist() == [0, 0, 5]

    def test_another_schema(self, tmp_path: Path) -> None:
        RunStore(tmp_path).close()
        with sqlite3.connect(tmp_path / FILE) as connection:
            connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
        for attempt in (RunStore, read_episodes):
            with pytest.raises(UserError, match=f"has schema version {SCHEMA + 1}, .* reads {SCHEMA}; read it with"):
                attempt(tmp_path)

    @pytest.mark.parametrize("content", [b"no database at all, but long enough to be read as one" * 20, bytes(5000)])
    def test_a_file_that_is_no_run(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / FILE).write_bytes(content)
        for attempt in (RunStore, read_episodes):
            with pytest.raises(UserError, match=r"is not a run, or damaged|schema version 0"):
                attempt(tmp_path)

    @pytest.mark.parametrize("below", ["run", "deep/er/run"])
    def test_a_place_that_cannot_be_written(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(UserError, match=r"file.*choose another --output"):
            RunStore(tmp_path / "file" / below)


WRITER = """
import sys
from pathlib import Path
from test_store import key, record
from mrvlm_sim.evaluation.store import RunStore
with RunStore(Path(sys.argv[1])) as store:
    episodes = range(100_000)
    store.plan(key(episode=episode) for episode in episodes)
    for episode in sorted(set(episodes) - {key.episode for key in store.finished()}):
        store.add(record(episode=episode, actions=bytes(2000)))
        print(episode, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_has_every_episode_once(tmp_path: Path) -> None:
    """What the writer said to be written is there after SIGKILL; the next writer goes on behind it."""
    rng, said = np.random.default_rng(0), -1
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.3))
            writer.send_signal(signal.SIGKILL)
            lines = [first, *writer.stdout.read().splitlines()]
        said = max(said, *(int(line) for line in lines if line.strip()))
        episodes = read_episodes(tmp_path / "run")["episode"].tolist()
        assert episodes == list(range(len(episodes)))
        assert len(episodes) > said


class TestMerge:
    def test_parts_make_the_whole(self, tmp_path: Path) -> None:
        parts = [filled(tmp_path / "one", [0, 2]), filled(tmp_path / "two", [1, 2, 3])]
        merge_runs(tmp_path / "whole", parts)
        assert sorted(read_episodes(tmp_path / "whole")["episode"]) == [0, 1, 2, 3]
        assert sorted(planned_keys(tmp_path / "whole")) == [key(episode=episode) for episode in range(4)]
        assert [session["of"] for session in read_sessions(tmp_path / "whole")] == ["one", "two"]
        assert read_parts(tmp_path / "whole", "policy") == {"mine": {"identity": {"version": 1}}}

    def test_latencies_may_differ_and_outcomes_may_not(self, tmp_path: Path) -> None:
        merge_runs(tmp_path / "whole", [filled(tmp_path / "one", [0], latency_ms=[1.0])])
        merge_runs(tmp_path / "whole", [filled(tmp_path / "two", [0], latency_ms=[2.0])])
        with pytest.raises(UserError, match=r"different outcomes of .*episode=0.*nothing was merged"):
            merge_runs(tmp_path / "whole", [filled(tmp_path / "other", [5, 0], end_hash="ab")])
        assert read_episodes(tmp_path / "whole")["episode"].tolist() == [0]

    def test_all_or_nothing(self, tmp_path: Path) -> None:
        parts = [filled(tmp_path / "one", [0]), filled(tmp_path / "other", [1, 0], end_hash="ab")]
        with pytest.raises(UserError, match="nothing was merged"):
            merge_runs(tmp_path / "whole", parts)
        assert read_episodes(tmp_path / "whole").empty
        assert read_parts(tmp_path / "whole", "policy") == {}
        assert read_sessions(tmp_path / "whole") == []

    def test_twice_is_once(self, tmp_path: Path) -> None:
        part = filled(tmp_path / "one", [0])
        merge_runs(tmp_path / "whole", [part])
        merge_runs(tmp_path / "whole", [part])
        assert len(read_sessions(tmp_path / "whole")) == len(read_episodes(tmp_path / "whole")) == 1

    def test_other_policies_of_the_same_name_are_refused(self, tmp_path: Path) -> None:
        other = filled(tmp_path / "two", [1])
        with sqlite3.connect(other / FILE) as connection:
            connection.execute("""UPDATE parts SET description = '{"identity": {"version": 2}}'""")
        with pytest.raises(UserError, match=r"another policy 'mine': identity\.version was 1, it is 2"):
            merge_runs(tmp_path / "whole", [filled(tmp_path / "one", [0]), other])

    def test_what_is_no_run_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no run in"):
            merge_runs(tmp_path / "whole", [filled(tmp_path / "one", [0]), tmp_path / "nowhere"])
        assert not (tmp_path / "whole").exists()
