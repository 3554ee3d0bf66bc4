"""Several environments side by side: what stands in the table follows from the episodes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.store import Key, RunStore
from mrvlm_sim.evaluation.suite import DIFFERENCE, OVER_TASKS, suite_tables, write_suite
from mrvlm_sim.metrics.statistics import interquartile_mean, over_tasks
from mrvlm_sim.tasks import chosen_environments

RATES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def run_of(folder: Path, outcomes: dict[str, list[bool]]) -> Path:
    """A run in which every policy had these outcomes, and lost every episode of a second condition."""
    with RunStore(folder) as store:
        for policy, successes in outcomes.items():
            for condition in ("clean", "pgd"):
                store.plan(Key(policy, condition, 0, episode) for episode in range(len(successes)))
                for episode, success in enumerate(successes):
                    success = success and condition == "clean"
                    store.add(EpisodeRecord("e", policy, condition, 0, episode, success=success))
    return folder


@given(RATES)
def test_the_interquartile_mean_lies_within_and_is_that_of_equal_rates(rates: list[float]) -> None:
    assert min(rates) - 1e-12 <= interquartile_mean(rates) <= max(rates) + 1e-12
    assert interquartile_mean([rates[0]] * len(rates)) == pytest.approx(rates[0])


@given(RATES, st.floats(0, 1))
def test_one_extreme_task_of_four_or_more_does_not_count(rates: list[float], extreme: float) -> None:
    middle = [0.5] * max(4, len(rates))
    assert interquartile_mean([*middle[1:], extreme]) == pytest.approx(0.5)


def test_it_agrees_with_scipy_where_that_is_defined() -> None:
    from scipy.stats import trim_mean

    rates = np.random.default_rng(0).random(12)
    assert interquartile_mean(rates.tolist()) == pytest.approx(trim_mean(rates, 0.25))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, rates, held = np.random.default_rng(0), [0.3, 0.5, 0.6, 0.8], 0
    for run in range(100):
        tasks = [rng.random(60) < rate for rate in rates]
        _, low, high = over_tasks(tasks, resamples=200, seed=run)
        held += low <= interquartile_mean(rates) <= high
    assert held >= 88


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    tasks = [rng.random(50) < 0.5 for _ in range(3)]
    assert over_tasks(tasks, tasks) == (0.0, 0.0, 0.0)
    better = [task | (rng.random(50) < 0.4) for task in tasks]
    value, low, high = over_tasks(better, tasks)
    assert 0 < low < value < high
    assert over_tasks(better, tasks) == (value, low, high)  # seeded


def test_the_table(tmp_path: Path) -> None:
    folders = {
        "reach": run_of(tmp_path / "reach", {"a": [True] * 4, "b": [True, False] * 2}),
        "push": run_of(tmp_path / "push", {"a": [True, False] * 2, "b": [False] * 4, "c": [True]}),
    }
    tables = suite_tables(folders, "b")
    table = tables[0].set_index("environment")
    assert list(table.columns) == ["a", "b", "c"]
    assert table.loc["reach", "a"] == "100.0 [51.0, 100.0]"
    assert (table.loc["reach", "c"], table.loc["push", "c"]) == ("-", "100.0 [20.7, 100.0]")
    assert table.loc[OVER_TASKS, "a"].startswith("75.0 [")
    assert table.loc[OVER_TASKS, "c"] == "-"  # it did not run everywhere
    assert table.loc[DIFFERENCE + "b", "a"].startswith("+50.0 [")
    assert table.loc[DIFFERENCE + "b", "b"] == "-"
    write_suite(tmp_path, tables)
    assert pd.read_csv(tmp_path / "suite.csv")["a"].tolist() == table["a"].tolist()
    assert "| reach" in (tmp_path / "suite.md").read_text()
    assert "| pgd" in (tmp_path / "conditions.md").read_text()


def test_what_a_condition_costs_over_all_tasks(tmp_path: Path) -> None:
    folders = {
        "reach": run_of(tmp_path / "reach", {"a": [True] * 4, "b": [True, False] * 2}),
        "push": run_of(tmp_path / "push", {"a": [True, False] * 2, "b": [False] * 4, "c": [True]}),
    }
    table = suite_tables(folders, "b")[1].set_index(["condition", "policy"])
    assert [*table.index] == [(condition, policy) for condition in ("clean", "pgd") for policy in "abc"]
    assert table.loc[("clean", "a"), OVER_TASKS].startswith("75.0 [")
    assert table.loc[("clean", "a"), "change"] == "-"
    assert table.loc[("pgd", "a"), OVER_TASKS] == "0.0 [0.0, 0.0]"
    assert table.loc[("pgd", "a"), "change"].startswith("-75.0 [")
    assert table.loc[("clean", "a"), DIFFERENCE + "b"].startswith("+50.0 [")
    assert table.loc[("pgd", "a"), DIFFERENCE + "b"] == "+0.0 [+0.0, +0.0]"
    assert set(table.loc[("pgd", "c")]) == {"-"}, "it did not run everywhere"


def test_without_the_reference_there_is_no_difference(tmp_path: Path) -> None:
    table, _ = suite_tables({"reach": run_of(tmp_path / "r", {"a": [True]})}, "uniform-256")
    assert table["environment"].tolist() == ["reach", OVER_TASKS]


def test_environments_are_chosen_by_name_with_their_own_settings() -> None:
    assert chosen_environments(["pick_place", "pick_place"]) == ["pick_place"]
    assert "pick_place" in chosen_environments(["all"])
    assert not any("/" in name for name in chosen_environments(["all"]))
    settings = ["pick_place.max_steps=9"]
    assert chosen_environments(["pick_place", "metaworld/reach-v3"], settings) == [
        "pick_place[max_steps=9]",
        "metaworld/reach-v3",
    ]
    with pytest.raises(UserError, match="Did you mean 'pick_place'"):
        chosen_environments(["pick_plac"])
    with pytest.raises(UserError, match="knobs begin with 'pick_place'"):
        chosen_environments(["pick_place"], ["reach.max_steps=9"])


def test_a_setting_of_all_is_one_of_each() -> None:
    shared = "all.unseen_phrases=true"
    assert all("unseen_phrases=true" in name for name in chosen_environments(["all"], [shared]))
    assert chosen_environments(["reach", "push"], ["all.max_steps=7", "reach.max_steps=4"]) == [
        "reach[max_steps=4]", "push[max_steps=7]",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"unknown knob of reach 'max_stps'\. Did you mean 'max_steps'\?"):
        chosen_environments(["reach"], ["all.max_stps=7"])
