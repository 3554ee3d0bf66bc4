"""Attacks until broken: fewer episodes, the same worst case."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mrvlm_sim.evaluation import runner
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.robustness import WORST, attack_conditions, robustness_table
from mrvlm_sim.evaluation.runner import Job
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import read_episodes, read_parts
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


def carry_out(plan: Plan, folder: Path, until_broken: bool = True) -> pd.DataFrame:
    """The rows of the run."""
    evaluation = Evaluation(plan, folder, workers=0, until_broken=until_broken)
    try:
        evaluation.run(lambda _: None)
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


def test_what_was_attacked_whole_goes_on_until_broken(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    carry_out(plan(2), tmp_path / "run", until_broken=False)
    assert len(carry_out(plan(5), tmp_path / "run")) == 2 * 5 + 3 + 3 + 3 + 2 + 1
    carry_out(plan(5), tmp_path / "all", until_broken=False)
    pd.testing.assert_frame_equal(worst(tmp_path / "run"), worst(tmp_path / "all"))


def test_an_interruption_changes_nothing(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    evaluation = Evaluation(plan(5), tmp_path / "run", workers=0, until_broken=True)

    def interrupt(_: EpisodeRecord) -> None:
        if len(evaluation.records) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation.run(interrupt)
    evaluation.finish()
    columns = ["condition", "episode", "success"]
    resumed, whole = carry_out(plan(5), tmp_path / "run"), carry_out(plan(5), tmp_path / "whole")
    pd.testing.assert_frame_equal(resumed[columns], whole[columns])


def test_an_error_breaks_nothing(plan: Callable[[int], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(job: Job) -> EpisodeRecord:
        error = "ValueError: no" if job.condition.name == "pgd 4/255" else ""
        return replace(outcome(job), error=error, success=not error and outcome(job).success)

    monkeypatch.setattr(runner, "run_job", fails)
    met = carry_out(plan(5), tmp_path / "run").groupby("condition")["episode"].apply(sorted)
    assert met["features 4/255"] == [1, 2, 3, 4]
    assert met["pgd 8/255"] == [1, 3, 4], "features broke 2"


def test_readers_are_told(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    carry_out(plan(1), tmp_path / "run")
    told = (tmp_path / "run" / "table.md").read_text()
    assert "attacked until broken: rates of single attacks are of those that were left" in told
    assert "was not run for" not in told


def test_sizes_that_one_policy_never_met_are_not_taken_for_broken(plan: Callable[[int], Plan], tmp_path: Path) -> None:
    """Nothing is said of a size that only another command, with other policies, attacks by."""
    carry_out(plan(5), tmp_path / "run")
    larger = attack_conditions(["pgd"], [12 / 255], 1, 1)
    evaluation = Evaluation(Plan("reach", ("uniform-49",), tuple(larger), 0, 5), tmp_path / "run", workers=0)
    evaluation.run(lambda _: None)
    evaluation.finish()
    survived = read_attacked(tmp_path / "run").survived
    sizes = (255 * survived["eps"]).round().groupby(survived["policy"]).apply(lambda found: sorted(set(found)))
    assert sizes.to_dict() == {"tiny": [0, 4, 8], "uniform-49": [0, 12]}
