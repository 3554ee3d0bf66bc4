"""Attacks until broken: fewer episodes, the same worst case."""

import sqlite3
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mrvlm_sim.evaluation import runner
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.robustness import WORST, attack_conditions, robustness_table
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import planned_keys, read_episodes, read_parts
from mrvlm_sim.evaluation.verdicts import read_attacked

pytestmark = pytest.mark.slow

BREAKS = {"pgd": [0, 4, 8, 16, 8], "features": [4, 8, 4, 16, 16]}  # by episode, from which size on; 0: also when clean
SIZES = [8, 4]  # of 255; not in order


def outcome(job: Job) -> EpisodeRecord:
    """What every job of the plan comes to, without running it."""
    size, name = round(255 * job.condition.eps), job.condition.attack
    success = size < BREAKS[name][job.episode] if name else BREAKS["pgd"][job.episode] > 0
    return EpisodeRecord(job.environment, job.name, job.condition.name, job.suite_seed, job.episode, success=success)


@pytest.fixture(autouse=True)
def no_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_job", outcome)


@pytest.fixture
def plan(tiny_folder: Path) -> Callable[[int], Plan]:
    conditions = attack_conditions(["pgd", "features"], [size / 255 for size in SIZES], 1, 1)
    return lambda episodes: Plan("reach", (str(tiny_folder),), tuple(conditions), 0, episodes)


def carry_out(
    plan: Plan, folder: Path, until_broken: bool = True, stop_after: int | None = None, **options: bool
) -> pd.DataFrame:
    """The rows of the run."""
    evaluation = Evaluation(plan, folder, workers=0, until_broken=until_broken, **options)  # type: ignore[arg-type]

    def interrupt(_: EpisodeRecord) -> None:
        if len(evaluation.records) == stop_after:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt) if stop_after else nullcontext():
            evaluation.run(interrupt)
    finally:
        evaluation.finish()
    return read_episodes(folder)


def worst(folder: Path) -> pd.DataFrame:
    table = robustness_table(read_episodes(folder), read_parts(folder, "condition"))
    return table.loc[table["attack"] == WORST, ["eps", "k", "n", "drop"]].reset_index(drop=True)


def test_only_what_is_left_is_attacked(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    met = carry_out(plan(5), tmp_path / "run").groupby("condition")["episode"].apply(sorted).to_dict()
    assert met == {
        "clean": [0, 1, 2, 3, 4],
        "pgd 4/255": [1, 2, 3, 4],
        "features 4/255": [2, 3, 4],
        "pgd 8/255": [3, 4],
        "features 8/255": [3],
    }


def test_the_worst_case_is_that_of_all_attacks(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    whole, fewer = carry_out(plan(5), tmp_path / "all", until_broken=False), carry_out(plan(5), tmp_path / "fewer")
    assert (len(whole), len(fewer)) == (25, 15)
    pd.testing.assert_frame_equal(worst(tmp_path / "fewer"), worst(tmp_path / "all"))
    assert worst(tmp_path / "fewer")["k"].tolist() == [2, 1]
    survived = [read_attacked(tmp_path / name).survived for name in ("fewer", "all")]
    pd.testing.assert_frame_equal(*survived)


@pytest.mark.parametrize("finished", [True, False])
def test_what_was_begun_whole_goes_on_until_broken(plan: Callable[[int], Plan], tmp_path: Path, finished: bool) -> None:
    begun = plan(2 if finished else 5)
    carry_out(begun, tmp_path / "run", until_broken=False, stop_after=None if finished else 8)
    rows = carry_out(plan(5), tmp_path / "run")
    carry_out(plan(5), tmp_path / "all", until_broken=False)
    pd.testing.assert_frame_equal(worst(tmp_path / "run"), worst(tmp_path / "all"))
    assert len(rows) < 25
    assert len(planned_keys(tmp_path / "run")) == len(rows)
    assert "missing; the same command" not in (tmp_path / "run" / "table.md").read_text()


def test_an_interruption_changes_nothing(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    carry_out(plan(5), tmp_path / "run", stop_after=8)
    columns = ["condition", "episode", "success"]
    resumed, whole = carry_out(plan(5), tmp_path / "run"), carry_out(plan(5), tmp_path / "whole")
    pd.testing.assert_frame_equal(resumed[columns], whole[columns])


class TestErrors:
    @pytest.fixture(autouse=True)
    def fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(job: Job) -> EpisodeRecord:
            error = "ValueError: no" if job.condition.name == "pgd 4/255" else ""
            return replace(outcome(job), error=error, success=not error and outcome(job).success)

        monkeypatch.setattr(runner, "run_job", run)

    def test_they_break_nothing(self, plan: Callable[[int], Plan], tmp_path: Path) -> None:
        met = carry_out(plan(5), tmp_path / "run").groupby("condition")["episode"].apply(sorted)
        assert met["features 4/255"] == [1, 2, 3, 4]
        assert met["pgd 8/255"] == [1, 3, 4], "features broke 2"

    def test_tried_again_they_are_left_out_if_others_broke_the_episode(
        self, plan: Callable[[int], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        carry_out(plan(5), tmp_path / "run")
        monkeypatch.setattr(runner, "run_job", outcome)
        rows = carry_out(plan(5), tmp_path / "run", retry_errors=True)
        assert not rows["error"].any()
        assert sorted(rows.loc[rows["condition"] == "pgd 4/255", "episode"]) == [1, 3, 4]
        assert len(planned_keys(tmp_path / "run")) == len(rows)


def test_what_fails_in_a_changed_world_is_attacked(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    first = plan(5)
    blurred = Condition("blur 1", "sensor", shift="blur", severity=1.0)
    shifted = replace(first, conditions=(first.conditions[0], blurred))
    carry_out(shifted, tmp_path / "run", until_broken=False)
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as run:
        run.execute("UPDATE episodes SET success = 0 WHERE condition = 'blur 1'")
    carry_out(first, tmp_path / "run")
    assert worst(tmp_path / "run")["k"].tolist() == [2, 1]


def test_a_policy_that_never_succeeds_is_beyond_all_attacks(
    plan: Callable[[int], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = "uniform-49"
    monkeypatch.setattr(runner, "run_job", lambda job: replace(outcome(job), success=job.name != fails))
    both = replace(plan(5), policies=(*plan(5).policies, fails))
    rows = carry_out(both, tmp_path / "run")
    assert set(rows.loc[rows["policy"] == fails, "condition"]) == {"clean"}
    assert f"was not run for {fails}" not in (tmp_path / "run" / "table.md").read_text()
    survived = read_attacked(tmp_path / "run").survived.groupby(["policy", "eps"])["success"].agg(["sum", "count"])
    assert survived.loc[fails].to_numpy().tolist() == 3 * [[0, 5]]
    assert survived.loc["tiny"].to_numpy().tolist() == 3 * [[5, 5]]


def test_readers_are_told(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    carry_out(plan(1), tmp_path / "run")
    told = (tmp_path / "run" / "table.md").read_text()
    assert "attacked until broken: single attacks may not have met the episodes that others had broken" in told
    assert "was not run for" not in told
    assert "left to" not in told


def test_what_was_stopped_between_two_attacks_is_not_taken_for_finished(
    plan: Callable[[int], Plan], tmp_path: Path
) -> None:
    """Only what was begun is planned, so that nothing of it is missing."""
    carry_out(plan(3), tmp_path / "run")
    carry_out(plan(5), tmp_path / "run", stop_after=4)
    told = (tmp_path / "run" / "table.md").read_text()
    assert "2 episodes are left to features 4/255; the same command runs them" in told
    carry_out(plan(5), tmp_path / "run")
    assert "left to" not in (tmp_path / "run" / "table.md").read_text()


def test_sizes_that_one_policy_never_met_are_not_taken_for_broken(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    """Nothing is said of a size that only another command, with other policies, attacks by."""
    carry_out(plan(5), tmp_path / "run")
    larger = attack_conditions(["pgd"], [12 / 255], 1, 1)
    carry_out(Plan("reach", ("uniform-49",), tuple(larger), 0, 5), tmp_path / "run", until_broken=False)
    survived = read_attacked(tmp_path / "run").survived
    sizes = (255 * survived["eps"]).round().groupby(survived["policy"]).apply(lambda found: sorted(set(found)))
    assert sizes.to_dict() == {"tiny": [0, 4, 8], "uniform-49": [0, 12]}
