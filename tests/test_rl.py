"""Reinforcement learning: what can be resumed, what is saved, and what is refused."""

import multiprocessing
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from rl import BRIEF, RECIPE, SAC_RECIPE, rl_card, same, train
from tiny import tiny_card
from typer.testing import CliRunner

from mrvlm_sim.agents.card import PolicyCard, PPORecipe, ReinforcementRecipe
from mrvlm_sim.agents.trained import TrainedPolicy, load_trained
from mrvlm_sim.cards import validate_card
from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.evaluation.periodic import quick_success
from mrvlm_sim.tasks import make_env
from mrvlm_sim.training.initial import unlike
from mrvlm_sim.training.reading import Lesson, Reading
from mrvlm_sim.training.rl.recipe import reinforcement_card
from mrvlm_sim.training.rl.session import Reinforcement, finish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Reinforcement:
    return train(tmp_path_factory.mktemp("rl"))


class TestResuming:
    @pytest.mark.parametrize("recipe", [RECIPE, SAC_RECIPE], ids=["ppo", "sac"])
    def test_stopped_and_resumed_is_uninterrupted_to_the_bit(self, recipe: ReinforcementRecipe, tmp_path: Path) -> None:
        whole = train(tmp_path / "whole", recipe)

        def stop(steps: int, figures: dict) -> None:
            if steps == 64:
                raise KeyboardInterrupt

        stopped = Reinforcement(rl_card(recipe), BRIEF, tmp_path / "stopped", processes=False)
        with pytest.raises(KeyboardInterrupt):
            stopped.run(lambda policy: quick_success(policy, [BRIEF], 1), stop)
        resumed = train(tmp_path / "stopped", recipe)
        assert same(resumed.network.state_dict(), whole.network.state_dict())
        curves = [pd.read_csv(t.folder / "curve.csv").drop(columns="seconds") for t in (resumed, whole)]
        pd.testing.assert_frame_equal(*curves)
        assert curves[0]["steps"].tolist() == [32, 64, 96]

    def test_processes_of_their_own_change_nothing(self, trained: Reinforcement, tmp_path: Path) -> None:
        assert same(train(tmp_path, processes=True).network.state_dict(), trained.network.state_dict())

    def test_a_save_that_was_cut_short_costs_one_segment(
        self, trained: Reinforcement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = torch.save

        def cut_short(state: dict, path: Path) -> None:
            if state["steps"] == 64:
                path.write_bytes(b"half a checkpoint")
                raise KeyboardInterrupt
            whole(state, path)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", cut_short)
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path)
        resumed = Reinforcement(rl_card(), BRIEF, tmp_path, processes=False)
        assert resumed.saved == 32
        resumed.run(None, lambda *_: None)
        assert same(resumed.network.state_dict(), trained.network.state_dict())

    def test_ctrl_c_ends_the_step_and_keeps_what_is_saved(self, trained: Reinforcement, tmp_path: Path) -> None:
        """As a terminal sends it, to the processes of the environments, too; the same command then goes on."""
        stopped = Reinforcement(rl_card(), BRIEF, tmp_path, processes=True)
        children: list[int] = []

        def press(steps: int, figures: dict) -> None:
            if steps == 32:
                children.extend(child.pid for child in multiprocessing.active_children())
                for pid in [*children, os.getpid()]:
                    os.kill(pid, signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            stopped.run(None, press)
        assert len(children) == 2
        assert stopped.saved == 32
        resumed = Reinforcement(rl_card(), BRIEF, tmp_path, processes=False)
        resumed.run(None, lambda *_: None)
        assert same(resumed.network.state_dict(), trained.network.state_dict())

    def test_an_environment_that_dies_ends_the_training_and_does_not_hang_it(
        self, trained: Reinforcement, tmp_path: Path
    ) -> None:
        stopped = Reinforcement(rl_card(), BRIEF, tmp_path, processes=True)

        def kill_one(steps: int, figures: dict) -> None:
            if steps == 32:
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

        with pytest.raises(UserError, match="process of the environments died; the same command goes on"):
            stopped.run(None, kill_one)
        assert multiprocessing.active_children() == []
        resumed = Reinforcement(rl_card(), BRIEF, tmp_path, processes=False)
        resumed.run(None, lambda *_: None)
        assert same(resumed.network.state_dict(), trained.network.state_dict())

    def test_time_counts_once(self, trained: Reinforcement) -> None:
        again = Reinforcement(rl_card(), BRIEF, trained.folder)
        assert again.seconds == trained.seconds
        again.run(None, lambda *_: None)
        assert again.seconds == trained.seconds

    def test_a_checkpoint_of_cloning_is_refused_and_so_is_the_reverse(
        self, trained: Reinforcement, tiny: TrainedPolicy, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="is of another kind of training; choose another --output"):
            Reading(tiny, Lesson(scenes=500, updates=1), trained.folder, workers=1)
        torch.save({"card": ""}, tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match="is of another kind of training; choose another --output"):
            Reinforcement(rl_card(), BRIEF, tmp_path)

    def test_a_damaged_checkpoint_is_said_to_be(self, trained: Reinforcement, tmp_path: Path) -> None:
        (tmp_path / "checkpoint.pt").write_bytes(trained.checkpoint.read_bytes()[:1000])
        with pytest.raises(UserError, match="truncated or damaged; delete it"):
            Reinforcement(rl_card(), BRIEF, tmp_path)

    @pytest.mark.parametrize(
        ("recipe", "environment", "network", "message"),
        [
            ({}, "push", {}, r"environment is 'reach\[max_steps=12\]' there and 'push' here"),
            ({}, BRIEF, {"fusion": "sequence"}, "network.fusion is 'embedded' there and 'sequence' here"),
            ({"discount": 0.5}, BRIEF, {}, "training.discount is 0.9 there and 0.5 here"),
            ({"seed": 1}, BRIEF, {}, "training.seed is 0 there and 1 here"),
        ],
    )
    def test_another_run_is_refused_and_the_difference_named(
        self, trained: Reinforcement, recipe: dict, environment: str, network: dict, message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            Reinforcement(rl_card(RECIPE.model_copy(update=recipe), **network), environment, trained.folder)

    def test_another_algorithm_is_refused(self, trained: Reinforcement) -> None:
        with pytest.raises(UserError, match=r"training\.method is 'ppo' there and 'sac' here"):
            Reinforcement(rl_card(SAC_RECIPE), BRIEF, trained.folder)

    def test_differences_between_maps(self) -> None:
        assert unlike({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": 3}) == [
            "a.c is 2 there and None here", "d is None there and 3 here",
        ]  # fmt: skip


class TestTheRecipe:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("ars", "ars cannot take Dict observations"),
            ("dqn", "dqn chooses among discrete actions"),
            ("pppo", "Did you mean 'ppo'"),
        ],
    )
    def test_algorithms_that_do_not_fit(self, name: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            reinforcement_card("uniform-49", "reach", name, None, {})

    def test_soft_actor_critic_squashes_its_actions_and_nothing_else_does(self, tmp_path: Path) -> None:
        card = reinforcement_card("uniform-49", "reach", "sac", None, {})
        assert card.network.squashed
        values = card.model_dump(mode="json", exclude_none=True)
        assert validate_card(tmp_path, values, PolicyCard) == card
        values["network"]["squashed"] = False
        with pytest.raises(UserError, match="squashed must be true for SAC"):
            validate_card(tmp_path, values, PolicyCard)
        assert "squashed" not in tiny_card().network.model_dump(), "cards of old stay what runs have kept of them"

    def test_a_card_of_the_arms_eyes_and_one_action_a_look(self) -> None:
        card = reinforcement_card("uniform-49", "reach", "ppo", None, {"seed": 3, "steps": None})
        assert (card.network.chunk, card.execute, card.environments) == (1, 1, ["reach"])
        assert isinstance(card.training, PPORecipe)
        assert card.training.seed == 3

    def test_faults_of_a_card_are_named_by_their_key(self, tmp_path: Path) -> None:
        values = rl_card().model_dump(mode="json", exclude_none=True)
        training = values["training"]
        for changed, message in (
            ({"discont": 0.9}, r"unknown key 'training.discont'; did you mean 'discount'\?"),
            ({"discount": 2.0}, "key 'training.discount', value 2.0"),
            ({"method": "ppp"}, "key 'training.method', value 'ppp'"),
        ):
            with pytest.raises(UserError, match=message):
                validate_card(tmp_path, values | {"training": training | changed}, PolicyCard)

    def test_steps_are_whole_segments(self) -> None:
        with pytest.raises(
            UserError, match="steps must be a multiple of environments x rollout x segment = 8192, not 1000"
        ):
            reinforcement_card("uniform-49", "reach", "ppo", None, {"steps": 1000})


def test_what_is_saved_is_a_policy_like_any_other(trained: Reinforcement) -> None:
    policy = load_trained(finish(trained))
    assert policy.card.training == trained.recipe
    assert "reinforcement" in (trained.folder / "policy" / "README.md").read_text()
    env, again = make_env(BRIEF), trained.policy
    records = [run_episode(env, BRIEF, p, "p", Condition(), 0, 0) for p in (policy, again)]
    env.close()
    assert records[0].error == ""
    assert records[0].end_hash == records[1].end_hash


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrvlm_sim.training.rl.recipe.reinforcement_card", lambda *_: rl_card())
    arguments = ["train", "rl", "--env", BRIEF, "--arm", "x", "--output", str(tmp_path), "--eval-episodes", "0"]
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert f"evaluate it with mrvlm-sim eval --env {BRIEF} --policy" in first.output
    weights = (tmp_path / "policy" / "model.safetensors").read_bytes()
    assert "resuming after step 96" in CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert (tmp_path / "policy" / "model.safetensors").read_bytes() == weights
