"""Tables say what the rows say; a run keeps its rows; a plan refuses nonsense."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.tables import policy_cost, pretty, success_table
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
        cost = policy_cost(tiny)
        assert cost["tokens"] == 48
        assert cost["params_M"] == pytest.approx(sum(p.numel() for p in tiny.network.parameters()) / 1e6)
        assert cost["gflops_forward"] > 0
        assert cost["gflops_step"] == pytest.approx(cost["gflops_forward"] / tiny.card.execute)
        assert policy_cost(load_policy("random")) == {}


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
