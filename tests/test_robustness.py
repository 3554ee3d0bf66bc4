"""Many attacks on the same episodes: what they are called, what the worst of them leaves, and the command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rl import BRIEF
from tiny import save_tiny
from typer.testing import CliRunner

from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.robustness import (
    BUDGETS,
    WORST,
    attack_conditions,
    check_attackable,
    preset_attacks,
    pretty_robustness,
    robustness_table,
    unfit_notes,
    worst_of,
)
from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.metrics.attacks import ATTACKS

pytestmark = pytest.mark.slow

CONDITIONS: dict[str, dict[str, Any]] = {
    "clean": {"attack": None, "eps": 0.0},
    "pgd 4/255": {"attack": "pgd", "eps": 4 / 255},
    "noise 4/255": {"attack": "noise", "eps": 4 / 255},
    "pgd 8/255": {"attack": "pgd", "eps": 8 / 255},
}


def rows(**success: Sequence[int]) -> pd.DataFrame:
    """Of one policy: a condition's successes by episode."""
    names = {"clean": "clean", "pgd4": "pgd 4/255", "noise4": "noise 4/255", "pgd8": "pgd 8/255"}
    return pd.DataFrame(
        [
            {
                "policy": "mine", "condition": names[name], "suite_seed": 0, "episode": episode, "success": bool(won),
                "steps": 10 * (episode + 1), "action_deviation": 0.1 * episode, "error": "",
                "forwards": 3 * (name != "clean"), "backwards": 2 * (name != "clean"),
            }
            for name, wins in success.items()
            for episode, won in enumerate(wins)
        ]
    )  # fmt: skip


class TestConditions:
    def test_all_of_each_with_all_of_the_others(self) -> None:
        found = attack_conditions(["noise", "pgd"], [4 / 255, 8 / 255], 3, 2, ["off", "known"], ["frame", "ring@0-0.5"])
        names = [condition.name for condition in found]
        assert len(names) == len(set(names)) == 1 + 2 * (2 + 4)  # noise knows nothing
        assert "pgd known ring@0-0.5 8/255" in names
        assert all(condition.source == "sensor" for condition in found)

    def test_only_gradients_are_found_on_others(self) -> None:
        found = attack_conditions(["square", "pgd"], [4 / 255], 3, 2, ["unknown", "known"], surrogates=["uniform-49"])
        assert [c.name for c in found if c.surrogate] == ["pgd from uniform-49 4/255"]
        with pytest.raises(UserError, match="asks the policy itself"):
            type(found[0])("x", "sensor", "square", 4 / 255, surrogate="uniform-49")

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_budgets_are_of_attacks_that_there_are(self, budget: str) -> None:
        assert set(BUDGETS[budget].attacks) <= ATTACKS.keys()

    def test_a_size_that_is_given_twice_is_one(self) -> None:
        assert len(attack_conditions(["pgd"], [4 / 255, 8 / 510], 1, 1)) == 2

    def test_budgets_grow(self) -> None:
        quick, standard, thorough = BUDGETS.values()
        assert set(quick.attacks) < set(standard.attacks) < set(thorough.attacks)
        assert quick[1:] < standard[1:] < thorough[1:]


class TestTable:
    def test_the_worst_of_all_is_by_episode(self) -> None:
        """Two attacks that each break other episodes leave less together than either."""
        table = robustness_table(
            rows(clean=[1, 1, 1, 1], pgd4=[0, 1, 1, 1], noise4=[1, 0, 1, 1], pgd8=[0, 0, 0, 0]), CONDITIONS
        )
        rates = table.set_index(["attack", "eps"])["rate"]
        assert rates["clean", 0.0] == 1
        assert rates["pgd 4/255", 4 / 255] == rates["noise 4/255", 4 / 255] == 0.75
        assert rates[WORST, 4 / 255] == 0.5
        assert rates[WORST, 8 / 255] == 0, "what is within 4/255 is within 8/255"
        worst = table[table["attack"] == WORST].iloc[0]
        assert (worst["drop"], worst["n"], worst["forwards"], worst["deviation"]) == (0.5, 4, 6, pytest.approx(0.15))
        assert worst["drop_low"] < 0.5 < worst["drop_high"]

    def test_what_broke_under_a_smaller_attack_counts_under_larger_ones(self) -> None:
        table = robustness_table(rows(clean=[1, 1], pgd4=[0, 1], pgd8=[1, 0]), CONDITIONS).set_index(["attack", "eps"])
        assert table.loc[("pgd 8/255", 8 / 255), "rate"] == 0.5
        assert table.loc[(WORST, 8 / 255), "rate"] == 0
        assert table.loc[(WORST, 4 / 255), "rate"] == 0.5

    def test_who_may_attack_may_leave_it(self) -> None:
        """An episode that fails when clean is not robust, though an attack happens to mend it."""
        table = robustness_table(rows(clean=[0, 1], pgd4=[1, 1]), CONDITIONS).set_index("attack")
        assert (table.loc["pgd 4/255", "k"], table.loc[WORST, "k"], table.loc[WORST, "drop"]) == (2, 1, 0)

    def test_episodes_that_later_attacks_left_out_stay_in_the_worst(self) -> None:
        left_out = rows(clean=[1, 1, 0], pgd4=[0, 1], pgd8=[1, 1]).query("condition != 'pgd 8/255' or episode == 1")
        table = robustness_table(left_out, CONDITIONS).set_index(["attack", "eps"])
        assert table.loc[WORST, "k"].tolist() == [1, 1]
        assert table.loc[WORST, "n"].tolist() == [3, 3]

    def test_sizes_after_the_last_episode_was_broken_stay_in_the_table(self) -> None:
        other = rows(clean=[1, 1], pgd4=[1, 1], pgd8=[1, 1]).assign(policy="other")
        table = robustness_table(pd.concat([rows(clean=[1, 1], pgd4=[0, 0]), other]), CONDITIONS)
        worst = table[table["attack"] == WORST].set_index(["policy", "eps"])["k"]
        assert worst.to_dict() == {
            ("mine", 4 / 255): 0, ("mine", 8 / 255): 0, ("other", 4 / 255): 2, ("other", 8 / 255): 2,
        }  # fmt: skip

    def test_what_was_not_attacked_yet_is_not_counted_as_robust(self) -> None:
        table = robustness_table(rows(clean=[1, 1, 1], pgd4=[0]), CONDITIONS)
        assert table["attack"].tolist() == ["clean", "pgd 4/255"]

    def test_episodes_that_one_attack_has_not_met_yet_count_by_the_others(self) -> None:
        worst = worst_of(rows(pgd4=[1, 1], noise4=[0]))
        assert worst["success"].tolist() == [False, True]

    def test_errors_are_no_strength_of_an_attack_unseen(self) -> None:
        found = rows(clean=[1, 1], pgd4=[0, 0], noise4=[1, 1])
        found.loc[found["condition"] == "pgd 4/255", "error"] = "boom"
        errors = robustness_table(found, CONDITIONS).set_index("attack")["errors"]
        assert errors.to_dict() == {"clean": 0, "pgd 4/255": 2, "noise 4/255": 0, WORST: 2}

    def test_what_was_changed_otherwise_is_not_clean(self) -> None:
        conditions = {**CONDITIONS, "noise 4/255": {"attack": None, "shift": "noise", "eps": 0.0}}
        table = robustness_table(rows(clean=[1, 1], noise4=[0, 0], pgd4=[1, 1]), conditions).set_index("attack")
        assert table.loc["clean", "k"] == 2
        assert table.loc["pgd 4/255", "drop"] == 0
        assert "noise 4/255" not in table.index

    def test_without_clean_episodes_yet(self) -> None:
        table = robustness_table(rows(pgd4=[1, 0]), CONDITIONS)
        assert table["attack"].tolist() == ["pgd 4/255", WORST]
        assert table["drop"].isna().all()

    def test_a_budget_has_what_fits_the_environment(self) -> None:
        own, other = (preset_attacks("thorough", name) for name in ("reach", "metaworld/reach-v3"))
        assert set(own) == set(ATTACKS)
        assert set(own) - set(other) == {"paint", "targeted"}
        with pytest.raises(UserError, match="Did you mean 'reach'"):
            preset_attacks("quick", "raech")

    def test_how_long_a_policy_lasts(self) -> None:
        found = rows(clean=[1, 1, 1, 1], pgd4=[0, 1, 0, 1])
        table = robustness_table(found.assign(steps=[10, 10, 10, 10, 50, 10, 50, 10]), CONDITIONS).set_index("attack")
        assert table["to_failure"].tolist() == [float("inf"), 60, 60]
        assert (table["to_failure_low"] < table["to_failure"]).all()
        failed = found.assign(error=["", "", "", "", "boom", "", "", ""], steps=10)
        table = robustness_table(failed, CONDITIONS).set_index("attack")
        assert table.loc["pgd 4/255", "to_failure"] == 40, "an error is no failure"
        shown = pretty_robustness(table.reset_index()).set_index("attack")["steps to a failure"]
        assert shown["clean"].startswith("over ")
        assert shown["pgd 4/255"].startswith("40 [")

    def test_it_is_readable(self) -> None:
        shown = pretty_robustness(robustness_table(rows(clean=[1, 1], pgd4=[0, 1], noise4=[1, 1]), CONDITIONS))
        assert shown["attack"].tolist() == ["clean", "pgd 4/255", "noise 4/255", f"{WORST} 4/255"]
        assert shown.iloc[1]["success % [95 % CI]"] == "50.0 [9.5, 90.5] (1/2)"
        assert shown.iloc[0]["drop"] == "-"


LOOKS = """
import numpy as np
from mrvlm_sim.agents.policy import Requirements
from mrvlm_sim.vision import Pyramid

class Looks:
    requirements = Requirements(cameras={"wrist": Pyramid(frame_size=64, patch=16, grids=(2, 2))})

    def reset(self, episodes): ...
    def act(self, observations):
        bright = observations["wrist/tokens"].mean(axis=(1, 2)) / 255 - 0.5
        return np.tile(np.clip(bright, -1, 1)[:, None], (1, 5))
"""


class TestTheCommand:
    def attack(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["attack", "--env", BRIEF, "--workers", "0", "--steps", "1", *arguments])

    def test_from_policies_to_the_worst_of_all(self, tmp_path: Path) -> None:
        policy, output = str(save_tiny(tmp_path / "tiny")), tmp_path / "run"
        arguments = ["--policy", policy, "--episodes", "2", "--output", str(output), "--surrogate", policy]
        result = self.attack(*arguments)
        assert result.exit_code == 0, result.output
        assert "worst of all 4/255" in result.output
        kept = pd.read_csv(output / "robustness.csv")
        assert kept["attack"].tolist() == [
            "clean", "noise 4/255", "pgd 4/255", "pgd from tiny 4/255", "features 4/255",
            "features from tiny 4/255", WORST,
        ]  # fmt: skip
        episodes = read_episodes(output)
        assert not episodes["error"].any()
        attacked = episodes[episodes["condition"].str.startswith(("pgd", "features"))]
        assert (attacked["largest_change"] == 4).all()
        assert (attacked[["action_deviation", "forwards", "backwards"]] > 0).all(axis=None)
        assert "12 episodes are there already" in self.attack(*arguments).output

    def test_a_policy_without_gradients_is_told_what_fits_it(self, tmp_path: Path) -> None:
        (tmp_path / "looks.py").write_text(LOOKS)
        reference = f"{tmp_path / 'looks.py'}:Looks"
        result = self.attack("--policy", reference, "--attack", "pgd", "--output", str(tmp_path / "a"))
        assert isinstance(result.exception, UserError)
        assert "gives no gradients for pgd; what fits it is noise, best-noise, square, hard-label" in str(
            result.exception
        )
        both = ["--attack", "pgd", "--attack", "square", "--episodes", "1", "--output", str(tmp_path / "b")]
        result = self.attack("--policy", reference, *both)
        assert result.exit_code == 0, result.output
        assert set(read_episodes(tmp_path / "b")["condition"]) == {"clean", "square 4/255"}
        assert "gives no gradients for pgd" in result.output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--attack", "pdg"], "Did you mean 'pgd'"),
            (["--eps", "4"], "write 4/255"),
            (["--eps", "four"], "must be a number or a fraction"),
            (["--knowledge", "chose"], "Did you mean 'chosen'"),
            (["--region", "circle"], "a region is frame"),
            (["--surrogate", "uniform-50"], "uniform-49"),
            (["--attack", "square", "--surrogate", "uniform-49"], "only attacks with gradients"),
            (["--attack", "square", "--knowledge", "chosen"], "cannot have chosen jitter"),
            (["--region", "ring@1.5-2"], "a region is frame"),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_runs(
        self, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        result = self.attack(
            "--policy", str(save_tiny(tmp_path / "tiny")), *arguments, "--output", str(tmp_path / "run")
        )
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)
        assert not (tmp_path / "run").exists()

    def test_who_sees_nothing_cannot_be_attacked(self) -> None:
        conditions = attack_conditions(["noise"], [4 / 255], 1, 1)
        with pytest.raises(UserError, match="expert sees nothing"):
            check_attackable({"expert": load_policy("expert")}, conditions)

    def test_eval_says_so_too(self, tmp_path: Path) -> None:
        (tmp_path / "looks.py").write_text(LOOKS)
        policy = ["--policy", f"{tmp_path / 'looks.py'}:Looks", "--no-baselines", "--episodes", "1", "--workers", "0"]
        attacked = ["--attack", "pgd", "--attack", "noise", "--output", str(tmp_path / "run")]
        result = CliRunner().invoke(app, ["eval", "--env", BRIEF, *policy, *attacked])
        assert result.exit_code == 0, result.output
        assert "Looks gives no gradients for pgd; what fits it is noise, best-noise" in " ".join(result.output.split())

    def test_other_conditions_are_no_attacks(self) -> None:
        """A uniform arm has no other eyes to look through, but gradients."""
        conditions = [Condition(), Condition("still", eyes="still"), Condition("pgd", "sensor", "pgd", 4 / 255)]
        assert not conditions[1].applies_to(load_policy("uniform-49"))
        assert unfit_notes({"uniform-49": load_policy("uniform-49")}, conditions) == []
