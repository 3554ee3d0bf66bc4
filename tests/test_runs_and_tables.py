"""Tables say what the rows say; a run keeps its rows; a plan refuses nonsense."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import Condition, EpisodeRecord
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.runs import Plan, RunFolder, new_run_path, read_episodes
from mrvlm_sim.evaluation.tables import cost_columns, pretty, success_table
from mrvlm_sim.metrics.statistics import wilson

CLEAN = Condition()


def rows_of(outcomes: dict[tuple[str, str], str], errors: tuple[str, ...] = ()) -> pd.DataFrame:
    """Rows as a run keeps them: a letter per episode, `+` success, `-` failure, `e` an error."""
    rows = []
    for (policy, condition), letters in outcomes.items():
        for episode, letter in enumerate(letters):
            record = EpisodeRecord(
                "pick_place", policy, condition, 0, episode, success=letter == "+", steps=9,
                error="ValueError: no" if letter == "e" else "", latency_ms=[2.0, 4.0],
            )  # fmt: skip
            rows.append(record.row())
    return pd.DataFrame(rows)


class TestTables:
    ROWS = {
        ("uniform-256", "clean"): "+++-------",
        ("uniform-256", "pgd"): "----------",
        ("pyramid", "clean"): "++++++++--",
        ("pyramid", "pgd"): "+++++e----",
        ("random", "clean"): "--------",
    }

    PLANNED: ClassVar = {"uniform-256": 20, "pyramid": 20, "random": 10}

    @pytest.fixture
    def table(self) -> pd.DataFrame:
        return success_table(rows_of(self.ROWS), self.PLANNED).set_index("policy")

    def test_rates_and_their_intervals(self, table: pd.DataFrame) -> None:
        assert list(table.index) == ["uniform-256", "pyramid", "random"]
        assert table.loc["pyramid", ["clean/k", "clean/n", "clean/rate"]].tolist() == [8, 10, 0.8]
        assert table.loc["pyramid", "clean/low"] == pytest.approx(0.490, abs=5e-4)
        assert table.loc["pyramid", "clean/high"] == pytest.approx(0.943, abs=5e-4)
        assert (table.loc["random", "clean/low"], table.loc["random", "clean/high"]) == wilson(0, 8)

    def test_an_error_was_attempted_and_failed(self, table: pd.DataFrame) -> None:
        assert table.loc["pyramid", ["pgd/k", "pgd/n", "errors"]].tolist() == [5, 10, 1]
        assert table.loc["uniform-256", "errors"] == 0

    def test_missing_episodes_are_counted(self, table: pd.DataFrame) -> None:
        assert table["missing"].tolist() == [0, 0, 2]

    def test_a_policy_that_never_had_its_turn_has_a_line(self) -> None:
        table = success_table(rows_of(self.ROWS), self.PLANNED | {"late": 10})
        line = pretty(table).set_index("policy").loc["late"]
        assert (line["clean success % [95 % CI]"], line["missing"], line["act ms p50/p95"]) == ("-", "10", "-")

    def test_comparison_with_the_reference(self, table: pd.DataFrame) -> None:
        """5 episodes on which only the pyramid succeeds: 2 / 2^5; 3 of 8 pairs on which only the reference does."""
        assert np.isnan(table.loc["uniform-256", "p"])
        assert table.loc["pyramid", ["difference", "p", "p_holm"]].tolist() == pytest.approx([0.5, 0.0625, 0.125])
        assert table.loc["random", ["difference", "p", "p_holm"]].tolist() == pytest.approx([-3 / 8, 0.25, 0.25])
        pyramid = table.loc["pyramid"]
        assert -1 <= pyramid["difference_low"] < pyramid["difference"] < pyramid["difference_high"] <= 1

    def test_what_an_attack_costs(self, table: pd.DataFrame) -> None:
        assert table.loc[["uniform-256", "pyramid"], "pgd/drop"].tolist() == pytest.approx([0.3, 0.3])
        assert np.isnan(table.loc["random", "pgd/drop"])
        assert table.loc["pyramid", "pgd/drop_low"] < 0.3 < table.loc["pyramid", "pgd/drop_high"]

    def test_latency(self, table: pd.DataFrame) -> None:
        assert table["latency_p50"].tolist() == [3.0] * 3

    def test_another_order_of_rows_says_the_same(self, table: pd.DataFrame) -> None:
        rows = rows_of(self.ROWS)
        shuffled = pd.concat([part.sample(frac=1, random_state=0) for _, part in rows.groupby("policy", sort=False)])
        shuffled = shuffled.sort_values(["condition"], kind="stable")
        again = success_table(shuffled, self.PLANNED).set_index("policy")
        pd.testing.assert_frame_equal(again.loc[table.index, list(table)], table)

    @pytest.mark.parametrize("kept", [["uniform-256"], ["random"], ["pyramid", "random"], ["uniform-256", "random"]])
    def test_as_people_read_it(self, kept: list[str]) -> None:
        rows = {key: letters for key, letters in self.ROWS.items() if key[0] in kept}
        shown = pretty(success_table(rows_of(rows), {policy: self.PLANNED[policy] for policy in kept}))
        assert shown["policy"].tolist() == kept
        texts = [*shown, *shown.to_numpy().ravel()]
        assert all(isinstance(text, str) and text for text in texts)
        assert [text for text in texts if "nan" in text.lower() or "none" in text.lower()] == []

    def test_the_text_holds_the_numbers(self) -> None:
        shown = pretty(success_table(rows_of(self.ROWS), self.PLANNED)).set_index("policy")
        assert shown.loc["pyramid", "clean success % [95 % CI]"] == "80.0 [49.0, 94.3] (8/10)"
        assert shown.loc["pyramid", "pgd drop"].startswith("+30.0 [")
        assert shown.loc["pyramid", "McNemar p (Holm)"] == "0.062 (0.12)"
        assert shown.loc["random", "pgd drop"] == "-"
        assert shown.loc["random", "missing"] == "2"
        assert "(8/10)" in pretty(success_table(rows_of(self.ROWS), self.PLANNED)).to_markdown(index=False)

    def test_no_rows(self) -> None:
        assert success_table(pd.DataFrame(), {"late": 3}).empty

    def test_costs(self, tiny: TrainedPolicy) -> None:
        costs = cost_columns({"tiny": tiny, "random": load_policy("random")}).set_index("policy")
        tokens, millions, forward, step = costs.loc["tiny"]
        assert tokens == 48
        assert millions == pytest.approx(sum(p.numel() for p in tiny.network.parameters()) / 1e6)
        assert forward > 0
        assert step == pytest.approx(forward / tiny.card.execute)
        assert costs.loc["random"].isna().all()


def record(**values: Any) -> EpisodeRecord:
    return EpisodeRecord("pick_place", values.pop("policy", "mine"), "clean", 0, values.pop("episode", 0), **values)


def job(policy: str = "mine", episode: int = 0) -> Job:
    return Job("pick_place", policy, policy, CLEAN, 0, episode)


class TestRunFolder:
    @pytest.mark.parametrize(
        "error",
        [
            "",
            "NA",
            'ValueError: "two", or\nthree\r\nlines; ünï©ødé ☃',
            "UnicodeDecodeError: a name of \udcff, which is no character",
        ],
    )
    def test_what_is_written_is_read(self, tmp_path: Path, error: str) -> None:
        written = record(
            success=error == "", steps=7, reward=1.0, instruction='put the "red", cube', largest_change=4,
            start_hash="0012", frame_hash="1e5", end_hash="ab", error=error, latency_ms=[1.25, 2.5],
        )  # fmt: skip
        folder = RunFolder(tmp_path / "run")
        try:
            folder.add(written)
            (before,) = read_episodes(tmp_path / "run").to_dict("records")
        finally:
            folder.close([job()])
        (after,) = read_episodes(tmp_path / "run").to_dict("records")
        assert before == after
        readable = error.encode("utf-8", "backslashreplace").decode()
        assert after == asdict(written) | {"latency_ms": "1.250 2.500", "error": readable}

    def test_every_row_is_on_disk_at_once(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        for episode in range(3):
            folder.add(record(episode=episode))
            assert read_episodes(tmp_path / "run")["episode"].tolist() == list(range(episode + 1))
        folder.close([job(episode=episode) for episode in range(3)])

    def test_closed_it_is_whole_and_in_the_order_of_the_plan(self, tmp_path: Path) -> None:
        planned = [("b", 0), ("b", 1), ("b", 10), ("a", 0), ("a", 1)]
        folder = RunFolder(tmp_path / "run")
        for policy, episode in (("a", 0), ("b", 10), ("b", 1), ("b", 0)):
            folder.add(record(policy=policy, episode=episode, error="two\nlines"))
        closed = folder.close([job(*key) for key in planned])
        assert (tmp_path / "run" / "episodes.csv").read_text().endswith("\n")
        rows = read_episodes(tmp_path / "run")
        assert list(zip(rows["policy"], rows["episode"], strict=True)) == planned[:4]
        assert closed["episode"].tolist() == rows["episode"].tolist()
        assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["episodes.csv"]

    def test_closed_without_a_row(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        assert folder.close([job()]).empty
        assert read_episodes(tmp_path / "run").empty

    def test_an_existing_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_text("mine")
        with pytest.raises(UserError, match="exists already; choose another --output"):
            RunFolder(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["note.txt"]

    @pytest.mark.parametrize("below", ["run", "deep/er/run"])
    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(UserError, match=r"file.*choose another --output"):
            RunFolder(tmp_path / "file" / below)

    def test_what_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no run in .*episodes\.csv is missing"):
            read_episodes(tmp_path)

    def test_a_new_run_is_named_by_environment_and_time(self, tmp_path: Path) -> None:
        path = new_run_path(tmp_path, "pick_place")
        assert path.parent == tmp_path
        assert path.name.startswith("pick_place-20")
        assert not path.exists()


class TestPlan:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"episodes": 0}, "--episodes must be at least 1, not 0"),
            ({"episodes": -3}, "--episodes must be at least 1, not -3"),
            ({"suite_seed": -1}, "--seed must be 0 or more, not -1"),
            ({"videos": -1}, "--video must be 0 or more, not -1"),
            ({"policies": ("expert", "expert")}, "two policies are called expert"),
            ({"policies": ("a.py:Mine", "b:Mine")}, "two policies are called Mine"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, change: dict[str, Any], message: str) -> None:
        sensible = {"policies": ("expert",), "conditions": (CLEAN,), "suite_seed": 0, "episodes": 1}
        with pytest.raises(UserError, match=message):
            Plan("pick_place", **sensible | change)

    def test_attacks_meet_only_those_they_apply_to(self, tiny_folder: Path, tmp_path: Path) -> None:
        attacks = [Condition(name, "sensor", name, 4 / 255) for name in ("noise", "pgd")]
        plan = Plan("pick_place", ("random", str(tiny_folder)), (Condition(source="sensor"), *attacks), 0, 2)
        planned = {(job.name, job.condition.name, job.episode) for job in plan.jobs(tmp_path, plan.load()[0])}
        assert planned == {("random", "clean", e) for e in (0, 1)} | {
            ("tiny", name, e) for name in ("clean", "noise", "pgd") for e in (0, 1)
        }
