"""An episode depends on nothing but its name; rows are kept; tables say what the rows say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import BRIEF_STEPS

from mrvlm_sim.agents.baselines import NoOpPolicy, RandomPolicy
from mrvlm_sim.agents.policy import EpisodeStart, Observations
from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.report import run_notes
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import Key, read_episodes, read_log
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_env

CLEAN = Condition()


def run(env: ManipulationEnv, policy: Any, episode: int = 0, seed: int = 0, name: str = "mine") -> EpisodeRecord:
    """A record without its latencies, which alone may differ."""
    return replace(run_episode(env, "pick_place", policy, name, CLEAN, seed, episode), latency_ms=[])


class TestAnEpisodeDependsOnNothingButItsName:
    def test_not_on_what_ran_before_in_the_same_environment(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv
    ) -> None:
        alone = make_env("pick_place")
        alone.card = brief_env.card
        policies = [load_policy("random"), tiny, load_policy("expert")]
        first = {(i, e): run(brief_env, policy, e) for i, policy in enumerate(policies) for e in range(2)}
        assert run(alone, tiny, 1) == first[1, 1]
        again = {(i, e): run(brief_env, policies[i], e) for i, e in reversed(first)}
        assert again == first
        assert all(record.error == "" for record in first.values())

    def test_every_policy_meets_the_same_starts(self, tiny: TrainedPolicy, brief_env: ManipulationEnv) -> None:
        policies = [load_policy(name) for name in ("expert", "random", "noop")] + [tiny]
        starts = [[run(brief_env, p, e) for e in range(3)] for p in policies]
        hashes = [[record.start_hash for record in records] for records in starts]
        assert all(row == hashes[0] for row in hashes)
        assert len(set(hashes[0])) == 3
        assert run(brief_env, policies[0], 0, seed=1).start_hash not in hashes[0]

    def test_a_policys_randomness_does_not_touch_its_eyes(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv
    ) -> None:
        class Gambler:
            """The tiny policy, that also draws from its stream and numpy's as often as it likes."""

            def __init__(self) -> None:
                self.requirements = tiny.requirements

            def reset(self, episodes: list[EpisodeStart]) -> None:
                self.rng = episodes[0].rng
                self.rng.random(100)
                tiny.reset(episodes)

            def act(self, observations: Observations) -> np.ndarray:
                self.rng.random(7)
                return tiny.act(observations)

        assert run(brief_env, Gambler(), 2) == run(brief_env, tiny, 2)

    def test_the_random_policy_has_a_stream_of_its_own(self, brief_env: ManipulationEnv) -> None:
        acted: list[list[float]] = []

        class Recorded(RandomPolicy):
            def reset(self, episodes: list[EpisodeStart]) -> None:  # type: ignore[override]
                super().reset(episodes)
                acted.append([])

            def act(self, observations: Observations) -> np.ndarray:
                actions = super().act(observations)
                acted[-1].extend(actions[0])
                return actions

        policy = Recorded()
        records = [run(brief_env, policy, episode) for episode in (0, 1)]
        run(brief_env, NoOpPolicy())
        records.append(run(brief_env, Recorded(), 0))
        assert acted[0] == acted[2]
        assert acted[0] != acted[1]
        assert records[0] == records[2]
        assert np.std(acted[0]) > 0.4


MISFIT = """
from mrvlm_sim.agents.policy import Requirements

class Misfit:
    requirements = Requirements(action_size=7)
    def reset(self, episodes): pass
    def act(self, observations): pass

class Raises:
    def reset(self, episodes): pass
    def act(self, observations): raise OSError("lost")
"""


class TestEvaluation:
    @pytest.fixture
    def misfits(self, tmp_path: Path) -> Path:
        path = tmp_path / "misfits.py"
        path.write_text(MISFIT)
        return path

    def test_what_does_not_fit_is_left_out_and_the_others_are_kept(self, misfits: Path, tmp_path: Path) -> None:
        policies = (f"{misfits}:Misfit", "expert", f"{misfits}:Raises", str(tmp_path / "nowhere"))
        evaluation = Evaluation(Plan("pick_place", policies, (CLEAN,), 0, 2), tmp_path / "run", workers=0)
        assert set(evaluation.problems) == {"Misfit", "nowhere"}
        assert "actions of size 7" in evaluation.problems["Misfit"]
        assert len(evaluation.jobs) == 4
        reported: list[EpisodeRecord] = []
        evaluation.run(reported.append)
        table = evaluation.finish()
        assert len(reported) == 4
        assert table["policy"].tolist() == ["expert", "Raises"]
        assert table["clean/n"].tolist() == [2, 2]
        assert table["errors"].tolist() == [0, 2]
        assert table["clean/k"].tolist()[1] == 0
        assert run_notes(tmp_path / "run") == ["error of Raises: OSError: lost (2 episodes)"]
        made = {entry.name for entry in (tmp_path / "run").iterdir()}
        assert made == {".lock", "run.sqlite", "episodes.csv", "provenance.json", "table.csv", "table.md"}
        assert read_episodes(tmp_path / "run")["error"].tolist() == ["", ""] + ["OSError: lost"] * 2
        text = (tmp_path / "run" / "table.md").read_text()
        assert [name in text for name in ("| expert", "| Raises", "| Misfit")] == [True, True, False]
        assert [note in text for note in ("left out Misfit", "actions of size 7", "OSError: lost")] == [True] * 3

    def test_a_policy_that_changed_since_the_last_run_is_loaded_anew(self, tmp_path: Path) -> None:
        path, logs = tmp_path / "changes.py", []
        for value in (0.1, 0.2):
            path.write_text(
                f"import numpy as np\nclass Changes:\n    def reset(self, episodes): ...\n"
                f"    def act(self, observations):\n        return np.full((1, 5), {value})\n"
            )
            folder = tmp_path / str(value)
            evaluation = Evaluation(Plan("pick_place", (f"{path}:Changes",), (CLEAN,), 0, 1), folder, workers=0)
            evaluation.run(lambda _: None)
            evaluation.finish()
            logs.append(read_log(folder, Key("Changes", "clean", 0, 0))[1])
        assert [float(log.mean()) for log in logs] == [pytest.approx(0.1), pytest.approx(0.2)]

    def test_if_nothing_fits_nothing_runs(self, misfits: Path, tmp_path: Path) -> None:
        plan = Plan("pick_place", (f"{misfits}:Misfit", "exprt"), (CLEAN,), 0, 2)
        with pytest.raises(UserError, match="no policy fits the environment") as error:
            Evaluation(plan, tmp_path / "run", workers=0)
        assert "size 7" in str(error.value)
        assert "'expert'" in str(error.value)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"workers": -2}, "--workers must be at least 0, not -2"),
            ({"workers": 0, "timeout": 0.0}, "--timeout must be more than 0 seconds, not 0"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], message: str, tmp_path: Path) -> None:
        plan = Plan("pick_place", ("expert",), (CLEAN,), 0, 2)
        with pytest.raises(UserError, match=message):
            Evaluation(plan, tmp_path / "run", **options)

    def test_cut_short_it_keeps_what_is_done(self, tmp_path: Path) -> None:
        plan = Plan("pick_place", ("expert", "noop"), (CLEAN,), 0, 3)
        evaluation = Evaluation(plan, tmp_path / "run", workers=0)

        def interrupt(_: EpisodeRecord) -> None:
            if len(evaluation.records) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluation.run(interrupt)
        table = evaluation.finish().set_index("policy")
        assert (table.loc["expert", "clean/n"], table.loc["expert", "missing"]) == (2, 1)
        assert "4 of 6 episodes are missing" in (tmp_path / "run" / "table.md").read_text()

    def test_cut_short_before_the_first_row(self, tmp_path: Path) -> None:
        evaluation = Evaluation(Plan("pick_place", ("expert",), (CLEAN,), 0, 3), tmp_path / "run", workers=0)
        assert evaluation.finish().empty
        assert "3 of 3 episodes are missing" in (tmp_path / "run" / "table.md").read_text()

    def test_an_attack_that_applies_to_nobody_is_said_so(self, tmp_path: Path) -> None:
        conditions = (Condition(source="sensor"), Condition("pgd", "sensor", "pgd", 4 / 255))
        evaluation = Evaluation(Plan("pick_place", ("expert",), conditions, 0, 1), tmp_path / "run", workers=0)
        evaluation.run(lambda _: None)
        evaluation.finish()
        assert "pgd was not run for expert" in (tmp_path / "run" / "table.md").read_text()


def test_a_video_shows_every_step(tmp_path: Path) -> None:
    evaluation = Evaluation(Plan("pick_place", ("expert",), (CLEAN,), 0, 2, videos=1), tmp_path / "run", workers=0)
    evaluation.run(lambda _: None)
    evaluation.finish()
    films = sorted((tmp_path / "run" / "videos").iterdir())
    assert [film.name for film in films] == ["expert-clean-000.mp4"]
    pictures = iio.imread(films[0], plugin="pyav")
    assert pictures.shape == (evaluation.records[0].steps + 1, 360, 480, 3)
    assert pictures.std() > 10
    assert (pictures[0] != pictures[-1]).any()


def test_a_video_shows_what_the_policy_sees(tiny: TrainedPolicy, brief_env: ManipulationEnv, tmp_path: Path) -> None:
    from mrvlm_sim.evaluation.video import EpisodeVideo

    with EpisodeVideo(tmp_path / "film.mp4") as film:
        run_episode(brief_env, "pick_place", tiny, "tiny", CLEAN, 0, 0, watch=film.add)
    pictures = iio.imread(tmp_path / "film.mp4", plugin="pyav")
    assert len(pictures) == BRIEF_STEPS + 1
    assert pictures.shape[1] == 360
    assert pictures.shape[2] >= 480 + 3 * 360
