"""A recorded episode can be run again; arms of several runs can be set side by side."""

import sqlite3
import zlib
from dataclasses import fields
from pathlib import Path

import imageio.v3 as iio
import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.compare import compare_runs, flipped
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.replay import find_episode, replay
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import FILE, Key, read_episodes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on the same episodes: expert and random, expert and no-op."""
    base = tmp_path_factory.mktemp("runs")
    for name, policies in (("a", ("expert", "random")), ("b", ("expert", "noop"))):
        evaluation = Evaluation(Plan("pick_place", policies, (Condition(),), 0, 2), base / name, workers=0)
        evaluation.run(lambda _: None)
        evaluation.finish()
    return base / "a", base / "b"


def tampered(run: Path, change: str) -> Path:
    with sqlite3.connect(run / FILE) as connection:
        connection.execute(change)
    return run


@pytest.fixture
def own(tiny_folder: Path, tmp_path: Path) -> Path:
    """A run of a policy that sees."""
    evaluation = Evaluation(Plan("pick_place", (str(tiny_folder),), (Condition(),), 0, 1), tmp_path / "run", workers=0)
    evaluation.run(lambda _: None)
    evaluation.finish()
    return tmp_path / "run"


LOOKS = """
import numpy as np
from mrvlm_sim.agents.policy import Requirements
from mrvlm_sim.vision import Pyramid

class Looks:
    requirements = Requirements(cameras={"scene": Pyramid(frame_size=64, patch=16, grids=(2, 2))})

    def reset(self, episodes): ...
    def act(self, observations):
        return np.zeros((len(observations["scene/tokens"]), 5))
"""


class TestReplay:
    @pytest.mark.parametrize("policy", ["expert", "random"])
    def test_it_ends_as_it_did(self, runs: tuple[Path, Path], policy: str) -> None:
        for episode in (0, 1):
            replayed = replay(runs[0], Key(policy, "clean", 0, episode))
            assert replayed.differences == ()
            assert (replayed.success, replayed.steps > 5) == (policy == "expert", True)

    def test_the_film_shows_what_a_policy_of_ones_own_saw(self, tmp_path: Path) -> None:
        (tmp_path / "looks.py").write_text(LOOKS)
        plan = Plan("pick_place", (f"{tmp_path / 'looks.py'}:Looks",), (Condition(),), 0, 1)
        evaluation = Evaluation(plan, tmp_path / "run", workers=0)
        evaluation.run(lambda _: None)
        evaluation.finish()
        replay(tmp_path / "run", Key("Looks", "clean", 0, 0), tmp_path / "film.mp4", height=90)
        assert iio.imread(tmp_path / "film.mp4", plugin="pyav").shape[2] >= 120 + 2 * 90

    def test_the_film_shows_every_step_and_what_the_policy_saw(self, own: Path, tmp_path: Path) -> None:
        replayed = replay(own, find_episode(own, 0, None, "clean"), tmp_path / "film.mp4", height=120)
        pictures = iio.imread(tmp_path / "film.mp4", plugin="pyav")
        assert len(pictures) == replayed.steps + 1
        assert pictures.shape[1] == 120
        assert pictures.shape[2] >= 160 + 3 * 120

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (f"UPDATE episodes SET initial_state = X'{zlib.compress(bytes(80)).hex()}'", "the initial state"),
            (f"UPDATE episodes SET actions = X'{zlib.compress(bytes(2000)).hex()}'", "the final state"),
            ("UPDATE episodes SET success = 1 - success", "success: was True, is False"),
            ("UPDATE parts SET description = '{}' WHERE kind = 'environment'", "the card or the files of pick_place"),
        ],
    )
    def test_what_differs_is_told(self, own: Path, change: str, told: str) -> None:
        replayed = replay(tampered(own, change), find_episode(own, 0, None, "clean"))
        assert any(difference.startswith(told) for difference in replayed.differences), replayed.differences

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, None, "clean"), r"has several policies; name one with --policy: expert, random"),
            ((0, "exprt", "clean"), r"unknown policy in .* Did you mean 'expert'"),
            ((0, "expert", "pgd"), r"unknown condition in .* Known: clean"),
            ((7, "expert", "clean"), r"no finished episode 7 of expert under clean"),
        ],
    )
    def test_what_is_not_there(self, runs: tuple[Path, Path], arguments: tuple, message: str) -> None:
        with pytest.raises(UserError, match=message):
            find_episode(runs[0], *arguments)

    def test_several_suite_seeds(self, own: Path) -> None:
        tampered(own, "INSERT INTO planned SELECT policy, condition, 1, episode FROM planned")
        columns = [field.name if field.name != "suite_seed" else "1" for field in fields(EpisodeRecord)]
        tampered(own, f"INSERT INTO episodes SELECT {', '.join(columns)} FROM episodes")
        with pytest.raises(UserError, match="has several suite seeds; name one with --seed: 0, 1"):
            find_episode(own, 0, None, "clean")
        assert find_episode(own, 0, None, "clean", seed=1).suite_seed == 1


class TestCompare:
    def test_arms_of_all_runs_meet_the_reference(self, runs: tuple[Path, Path]) -> None:
        table, notes, reference = compare_runs(runs)
        assert reference == "a/expert"
        assert table["policy"].tolist() == ["a/expert", "random", "b/expert", "noop"]
        assert table.set_index("policy")["difference"].tolist()[1:] == [-1.0, 0.0, -1.0]
        assert notes == []
        assert compare_runs(runs, "noop")[2] == "noop"

    def test_which_episodes_flipped(self, runs: tuple[Path, Path]) -> None:
        lines = flipped(runs, "random").set_index("policy")
        assert lines.loc["a/expert"].tolist() == ["clean: 0, 1", "-"]
        assert lines.loc["noop"].tolist() == ["-", "-"]
        assert flipped(runs, "b/expert").set_index("policy").loc["random"].tolist() == ["-", "clean: 0, 1"]

    def test_runs_that_were_rendered_differently(self, runs: tuple[Path, Path], own: Path) -> None:
        tampered(own, "UPDATE sessions SET provenance = json_set(provenance, '$.standard_frame', 'another')")
        (note,) = compare_runs([runs[0], own])[1]
        assert note.startswith("the runs were rendered differently (standard frame: ")
        assert note.count("another") == 1

    def test_another_condition_of_the_same_name(self, runs: tuple[Path, Path], own: Path) -> None:
        tampered(own, "UPDATE parts SET description = '{}' WHERE kind = 'condition'")
        assert compare_runs([runs[0], own])[1] == ["the condition clean is not the same in all runs"]

    def test_what_makes_no_sense_is_refused(self, runs: tuple[Path, Path], own: Path) -> None:
        with pytest.raises(UserError, match="unknown policy in these runs 'nobody'"):
            compare_runs(runs, "nobody")
        tampered(own, "UPDATE parts SET name = 'reach' WHERE kind = 'environment'")
        with pytest.raises(UserError, match="several environments cannot be compared: pick_place, reach"):
            compare_runs([runs[0], own])

    def test_a_run_named_twice_counts_once(self, runs: tuple[Path, Path]) -> None:
        with pytest.raises(UserError, match="a run is named twice"):
            compare_runs([runs[0], runs[0].parent / "." / runs[0].name])

    def test_another_version_of_a_package(self, runs: tuple[Path, Path], own: Path) -> None:
        tampered(own, "UPDATE sessions SET provenance = json_set(provenance, '$.versions.mujoco', '2.1')")
        assert any("several versions of mujoco: 2.1, " in note for note in compare_runs([runs[0], own])[1])

    def test_nothing_is_written(self, runs: tuple[Path, Path]) -> None:
        before = read_episodes(runs[0])
        compare_runs(runs)
        assert read_episodes(runs[0]).equals(before)
