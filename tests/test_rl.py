"""Reinforcement learning: what is learned from what, what can be resumed, and what is refused."""

import copy
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from stable_baselines3 import PPO, SAC
from tiny import PYRAMID, save_tiny, tiny_card
from typer.testing import CliRunner

from mrvlm_sim.agents.card import PolicyCard, PPORecipe, ReinforcementRecipe, SACRecipe
from mrvlm_sim.agents.trained import TrainedPolicy, load_trained
from mrvlm_sim.cards import validate_card
from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import Condition, run_episode
from mrvlm_sim.evaluation.periodic import quick_success
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.sim.suite_env import encode_instruction
from mrvlm_sim.tasks import make_env, make_task
from mrvlm_sim.tasks.reach import Reach
from mrvlm_sim.training.reading import Lesson, Reading
from mrvlm_sim.training.rl.actor_critic import ActorCritic, SquashedActorCritic, copy_actor_to_head, copy_head_to_actor
from mrvlm_sim.training.rl.auxiliary import LandmarkRegression
from mrvlm_sim.training.rl.envs import EncodedVecEnv, Frames, probe, rewarded, training_env, vector_env
from mrvlm_sim.training.rl.features import TokenFeatures
from mrvlm_sim.training.rl.pretraining import random_frames
from mrvlm_sim.training.rl.recipe import differences, reinforcement_card
from mrvlm_sim.training.rl.session import Reinforcement, finish
from mrvlm_sim.vision import Pyramid

pytestmark = pytest.mark.slow

BUDGET: dict[str, Any] = {
    "steps": 96, "environments": 2, "rollout": 16, "segment": 1, "batch": 16, "pretraining_scenes": 12,
    "pretraining_updates": 3, "encoder_updates": 2, "encoder_batch": 8,
}  # fmt: skip
RECIPE = PPORecipe(**BUDGET, epochs=2)
SAC_RECIPE = SACRecipe(**BUDGET, learning_starts=20, gradient_steps=1, replay=80)  # fills and goes round
BRIEF = "reach[max_steps=12]"
Weights = dict[str, torch.Tensor]
AnyActor = ActorCritic | SquashedActorCritic


def rl_card(recipe: ReinforcementRecipe = RECIPE, **network: Any) -> PolicyCard:
    card = tiny_card(chunk=1, squashed=recipe.method == "sac", **network)
    return card.model_copy(update={"training": recipe, "execute": 1, "environments": ["reach"]})


def train(folder: Path, recipe: ReinforcementRecipe = RECIPE, processes: bool = False, **network: Any) -> Reinforcement:
    training = Reinforcement(rl_card(recipe, **network), BRIEF, folder, processes)
    training.run(lambda policy: quick_success(policy, [BRIEF], 1), lambda *_: None)
    return training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Reinforcement:
    return train(tmp_path_factory.mktemp("rl"))


@pytest.fixture
def eyes() -> EncodedVecEnv:
    torch.manual_seed(0)
    card = rl_card()
    made = EncodedVecEnv(vector_env(BRIEF, card.cameras, 2, processes=False), PolicyNetwork(card.cameras, card.network))
    made.seed(0)
    return made


@pytest.fixture(params=["ppo", "sac"])
def actor(request: pytest.FixtureRequest, eyes: EncodedVecEnv) -> AnyActor:
    kind = ActorCritic if request.param == "ppo" else SquashedActorCritic
    return kind(eyes.observation_space, eyes.action_space, lambda _: 1e-3, hidden=32)


def values_of(actor: AnyActor, seen: Weights) -> torch.Tensor:
    if isinstance(actor, ActorCritic):
        return actor.predict_values(seen)
    return torch.cat(actor.critic(seen, torch.zeros(len(seen["truth"]), 5)))


def same(one: Weights, other: Weights) -> bool:
    return all((one[name] == other[name]).all() for name in one)


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
        assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": 3}) == [
            "a.c is 2 there and None here", "d is None there and 3 here",
        ]  # fmt: skip


class TestTheActor:
    def test_it_is_blind_to_the_truth_and_the_critic_is_not(self, eyes: EncodedVecEnv, actor: AnyActor) -> None:
        seen = {name: torch.from_numpy(values) for name, values in eyes.reset().items()}
        told = {**seen, "truth": seen["truth"] + 1}
        shown = {**seen, "features": seen["features"] + 1}
        with torch.no_grad():
            act = lambda observed: actor._predict(observed, deterministic=True)  # noqa: E731
            assert (act(told) == act(seen)).all()
            assert (act(shown) != act(seen)).any()
            assert (values_of(actor, told) != values_of(actor, seen)).any()
            assert (values_of(actor, shown) == values_of(actor, seen)).all()

    def test_the_network_with_its_head_acts_as_it_does(self, eyes: EncodedVecEnv, actor: AnyActor) -> None:
        """From the same observations, through the way that evaluation goes."""
        copy_actor_to_head(actor, eyes.network)
        seen = eyes.reset()
        raw = eyes.take_frames()
        wanted, _ = actor.predict(seen, deterministic=True)
        config = eyes.network.config.model_copy(update={"squashed": isinstance(actor, SquashedActorCritic)})
        network = PolicyNetwork({"wrist": PYRAMID}, config)
        network.load_state_dict(eyes.network.state_dict())
        policy = TrainedPolicy(rl_card(), network, torch.device("cpu"))
        words = [bytes(row).rstrip(b"\0").decode() for row in raw["instruction"]]
        policy.reset([type("Start", (), {"instruction": text})() for text in words])
        np.testing.assert_allclose(policy.act(raw), wanted, atol=1e-6)

    def test_it_can_begin_as_a_cloned_policy(self, eyes: EncodedVecEnv, actor: AnyActor, tmp_path: Path) -> None:
        cloned = load_trained(save_tiny(tmp_path / "cloned"))
        training = Reinforcement(rl_card(RECIPE.model_copy(update={"init": str(tmp_path / "cloned")})), BRIEF, tmp_path)
        copy_head_to_actor(training.network, actor)
        raw = training_env(BRIEF, {"wrist": PYRAMID}).reset(seed=0)[0]
        batch = {name: values[None] for name, values in raw.items() if name not in ("landmarks", "instruction")}
        words = torch.zeros(1, 128, dtype=torch.int64)
        chunk = cloned.decide(batch, words)
        ours = TrainedPolicy(training.card, training.network, torch.device("cpu")).decide(batch, words)
        np.testing.assert_allclose(ours[0, 0], chunk[0, 0], atol=1e-6)

    def test_another_shape_cannot_be_begun_with(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "wide", width=32)
        recipe = RECIPE.model_copy(update={"init": str(folder)})
        with pytest.raises(UserError, match=r"is a policy of another arm: network\.width is 32 there and 16 here"):
            Reinforcement(rl_card(recipe), BRIEF, tmp_path)


class TestTheEncoder:
    def frames(self, eyes: EncodedVecEnv) -> Frames:
        eyes.reset()
        for _ in range(6):
            eyes.step(np.stack([eyes.action_space.sample() for _ in range(2)]))
        return eyes.take_frames()

    def test_it_learns_where_things_are_from_frames(self, eyes: EncodedVecEnv) -> None:
        frames = self.frames(eyes)
        recipe = RECIPE.model_copy(update={"pretraining_updates": 200, "matrix_rate": 5e-3, "learning_rate": 5e-3})
        lessons = LandmarkRegression(eyes.network, recipe, make_task("reach"))
        lessons.scenes = frames
        errors = [lessons.learn(30, np.random.default_rng(i))["loss"] for i in range(5)]
        assert errors[-1] < 0.6 * errors[0]

    def test_lessons_leave_the_frames_as_they_were(self, eyes: EncodedVecEnv) -> None:
        frames = self.frames(eyes)
        before = copy.deepcopy(frames)
        lessons = LandmarkRegression(eyes.network, RECIPE, make_task("reach"))
        lessons.scenes = frames
        lessons.learn(2, np.random.default_rng(0), rollout=frames)
        assert all(np.array_equal(frames[name], before[name], equal_nan=name == "landmarks") for name in frames)

    def test_random_frames_are_of_as_many_scenes_as_asked_for(self) -> None:
        """A frame depends on its number alone, whoever renders it; scenes and places differ."""
        frames = random_frames("reach", {"wrist": PYRAMID}, 6, 0, workers=0)
        assert len({text.tobytes() for text in frames["instruction"]}) > 2
        assert np.std(frames["proprio"][:, :3], axis=0).min() > 0.005
        fewer = random_frames("reach", {"wrist": PYRAMID}, 3, 0, workers=1)
        assert all(np.array_equal(fewer[name], frames[name][:3], equal_nan=name == "landmarks") for name in frames)

    def test_frames_are_taken_once(self, eyes: EncodedVecEnv) -> None:
        assert len(self.frames(eyes)["landmarks"]) == 14
        eyes.reset()
        assert len(eyes.take_frames()["landmarks"]) == 2

    @pytest.mark.parametrize("algorithm", [PPO, SAC])
    def test_it_is_a_features_extractor_for_any_algorithm(
        self, algorithm: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = tiny_card()
        monkeypatch.setattr("mrvlm_sim.training.rl.features.arm_card", lambda arm: (card, Path()))
        env = training_env(BRIEF, {"wrist": PYRAMID}).env  # without landmarks
        options: dict[str, Any] = {
            "features_extractor_class": TokenFeatures,
            "features_extractor_kwargs": {"arm": "tiny"},
        }
        small = {"n_steps": 8, "batch_size": 8} if algorithm is PPO else {"learning_starts": 6, "buffer_size": 50}
        model = algorithm("MultiInputPolicy", env, policy_kwargs=options, seed=0, device="cpu", **small)
        weight = next(m for m in model.policy.modules() if isinstance(m, TokenFeatures)).network.patches["wrist"].weight
        before = weight.clone()
        model.learn(8)
        assert (weight != before).any()
        env.close()

    def test_stable_baselines_leaves_trained_weights_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        save_tiny(tmp_path)
        monkeypatch.setattr("mrvlm_sim.training.rl.features.arm_card", lambda arm: (tiny_card(), tmp_path))
        env = training_env(BRIEF, {"wrist": PYRAMID}).env
        extractor = {
            "features_extractor_class": TokenFeatures,
            "features_extractor_kwargs": {"arm": "x", "trained": True},
        }
        model = PPO("MultiInputPolicy", env, policy_kwargs=extractor, device="cpu")
        assert same(model.policy.features_extractor.network.state_dict(), load_trained(tmp_path).network.state_dict())
        env.close()

    def test_other_eyes_are_refused(self) -> None:
        env = training_env(BRIEF, {"wrist": Pyramid(frame_size=64, patch=8, grids=(4,))}).env
        with pytest.raises(UserError, match=r"pyramid-48-cross sees wrist/tokens of shape \(48, 3072\)"):
            TokenFeatures(env.observation_space, "pyramid-48-cross")  # type: ignore[arg-type]
        env.close()


class TestTheEnvironments:
    def test_dense_reward_unless_it_is_said_otherwise(self) -> None:
        assert rewarded("reach") == "reach[reward=dense]"
        assert make_env(rewarded(BRIEF)).card.reward == "dense"
        assert make_env(rewarded(BRIEF)).card.max_steps == 12
        assert rewarded("reach[reward=sparse]") == "reach[reward=sparse]"

    def test_without_a_reward_there_is_nothing_to_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mean, spread = probe("reach", 0)
        assert mean.shape == spread.shape == (7,)
        with pytest.raises(UserError, match="reach\\[reward=sparse\\] has no reward to learn from: 200 random steps"):
            probe("reach[reward=sparse]", 0)
        monkeypatch.setattr(Reach, "reward", lambda *_: float("nan"))
        with pytest.raises(UserError, match="has no reward to learn from"):
            probe("reach", 0)

    def test_another_packages_environment_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="made by metaworld"):
            Reinforcement(rl_card(), "metaworld/reach-v3", tmp_path)

    def test_the_last_observation_of_an_episode_has_its_truth(self, eyes: EncodedVecEnv) -> None:
        eyes.reset()
        steps = [eyes.step(np.zeros((2, 5), np.float32)) for _ in range(12)]
        assert not any(dones.any() for _, _, dones, _ in steps[:-1])
        *_, dones, infos = steps[-1]
        assert dones.all()
        for info in infos:
            assert info["TimeLimit.truncated"]
            assert info["terminal_observation"]["truth"].shape == (eyes.truth_size,)
            assert np.abs(info["terminal_observation"]["truth"]).sum() > 0

    def test_truth_is_that_of_the_simulation(self, eyes: EncodedVecEnv) -> None:
        truth, landmarks = eyes.reset()["truth"], eyes.take_frames()["landmarks"]
        there = np.isfinite(landmarks[..., 0])
        assert (truth[:, 30:40] == there).all()
        np.testing.assert_allclose(truth[:, :3], landmarks[:, 0] / 0.1, rtol=1e-5)
        assert (truth[:, :30].reshape(2, 10, 3)[~there] == 0).all()

    @pytest.mark.parametrize(("name", "size"), [("landmarks", 4), ("proprio_size", 9), ("action_size", 4)])
    def test_a_network_of_other_sizes_is_refused(self, name: str, size: int, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"the arm's network has {name} = {size}, "):
            Reinforcement(rl_card(**{name: size}), BRIEF, tmp_path)


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


def test_an_instruction_survives_being_a_feature() -> None:
    """Of any bytes, as floating point numbers, which is how stable-baselines3 hands observations on."""
    from mrvlm_sim.models import encode_words
    from mrvlm_sim.training.rl.features import network_inputs

    card = tiny_card()
    text = "berühre den roten Ball \u7403"
    rows = {"instruction": torch.from_numpy(encode_instruction(text))[None].float(), "proprio": torch.zeros(1, 7)}
    rows |= {"wrist/tokens": torch.zeros(1, 48, 192), "wrist/boxes": torch.zeros(1, 48, 4)}
    words = network_inputs(PolicyNetwork(card.cameras, card.network), rows)[3]
    assert (words == encode_words([text])).all()
