"""The episodes of a run as a file: what went in comes out."""

from pathlib import Path

import pandas as pd
import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.export import export_run
from mrvlm_sim.evaluation.store import Key, RunStore, read_episodes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with RunStore(folder) as store:
        store.plan(Key(name, "clean", 0, episode) for name in ("a", "b") for episode in range(3))
        for name in ("a", "b"):
            for episode in range(3):
                error = 'ValueError: "no", it said\nünïcode' if episode == 2 else ""
                made = {"success": episode == 0, "steps": 7, "reward": 0.5, "latency_ms": [1.5] * episode}
                store.add(EpisodeRecord("pick_place", name, "clean", 0, episode, error=error, **made))
    return folder


def test_parquet(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "episodes.parquet"
    assert export_run(run, path) == 6
    found, rows = pd.read_parquet(path), read_episodes(run)
    assert found["latency_ms"].map(list).tolist() == [[1.5] * episode for episode in (0, 1, 2)] * 2
    assert found.drop(columns="latency_ms").equals(rows.drop(columns="latency_ms"))
    assert found["success"].dtype == bool
    assert [file.name for file in path.parent.iterdir()] == ["episodes.parquet"]


def test_csv(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    assert export_run(run, path) == 6
    found = pd.read_csv(path, keep_default_na=False, dtype={"latency_ms": str})
    assert found.to_dict("records") == read_episodes(run).to_dict("records")


@pytest.mark.parametrize(
    ("run_name", "output", "message"),
    [
        ("run", "episodes.parkett", "Did you mean '.parquet'"),
        ("nothing", "e.csv", "no run in"),
        ("run", "e", "Known: "),
    ],
)
def test_what_cannot_be(run: Path, run_name: str, output: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_run(run.parent / run_name, run.parent / output)
    assert not (run.parent / output).exists()


def test_what_fails_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        (tmp_path / "e.parquet.partial").write_text("half")
        raise ValueError("no")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    with pytest.raises(ValueError, match="no"):
        export_run(run, tmp_path / "e.parquet")
    assert not list(tmp_path.glob("e.*"))


def test_a_place_that_cannot_be_written_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export_run(run, tmp_path / "file" / "episodes.csv")
