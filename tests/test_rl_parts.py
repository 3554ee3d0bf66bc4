"""The parts of reinforcement learning: who sees what, who learns from what, in which environments."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl import BRIEF, RECIPE, Weights, make_eyes, rl_card, same
from stable_baselines3 import PPO, SAC
from tiny import PYRAMID, save_tiny, tiny_card

from mrvlm_sim.agents.card import PPORecipe
from mrvlm_sim.agents.trained import TrainedPolicy, load_trained
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.seeding import integer_seed
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.sim.suite_env import encode_instruction
from mrvlm_sim.tasks import make_env, make_task
from mrvlm_sim.tasks.reach import Reach
from mrvlm_sim.training.rl.actor_critic import ActorCritic, SquashedActorCritic, copy_actor_to_head, copy_head_to_actor
from mrvlm_sim.training.rl.auxiliary import LandmarkRegression
from mrvlm_sim.training.rl.envs import EncodedVecEnv, Frames, probe, rewarded, training_env
from mrvlm_sim.training.rl.features import TokenFeatures
from mrvlm_sim.training.rl.pretraining import random_scenes
from mrvlm_sim.training.rl.session import Reinforcement
from mrvlm_sim.vision import Jitter, Pyramid

pytestmark = pytest.mark.slow

AnyActor = ActorCritic | SquashedActorCritic


@pytest.fixture
def eyes() -> EncodedVecEnv:
    return make_eyes()


@pytest.fixture(params=["ppo", "sac"])
def actor(request: pytest.FixtureRequest, eyes: EncodedVecEnv) -> AnyActor:
    kind = ActorCritic if request.param == "ppo" else SquashedActorCritic
    return kind(eyes.observation_space, eyes.action_space, lambda _: 1e-3, hidden=32)


def values_of(actor: AnyActor, seen: Weights) -> torch.Tensor:
    if isinstance(actor, ActorCritic):
        return actor.predict_values(seen)
    return torch.cat(actor.critic(seen, torch.zeros(len(seen["truth"]), 5)))


def same_frames(one: Frames, other: Frames) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(values, other[name], equal_nan=name == "landmarks") for name, values in one.items()
    )


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

    def lessons(self, eyes: EncodedVecEnv, scenes: int, recipe: PPORecipe = RECIPE) -> LandmarkRegression:
        lessons = LandmarkRegression(eyes.network, recipe, make_task("reach"))
        lessons.scenes = random_scenes("reach", {"wrist": PYRAMID}, scenes, 0, workers=0)
        return lessons

    def test_it_learns_where_things_are(self, eyes: EncodedVecEnv) -> None:
        recipe = RECIPE.model_copy(update={"pretraining_updates": 200, "matrix_rate": 5e-3, "learning_rate": 5e-3})
        lessons = self.lessons(eyes, 16, recipe)
        errors = [lessons.learn(30, np.random.default_rng(i))["loss"] for i in range(5)]
        assert errors[-1] < 0.7 * errors[0]

    def test_lessons_leave_frames_and_scenes_as_they_were(self, eyes: EncodedVecEnv) -> None:
        frames, lessons = self.frames(eyes), self.lessons(eyes, 8)
        before = copy.deepcopy((frames, lessons.scenes.known))
        lessons.learn(2, np.random.default_rng(0), rollout=frames)
        assert all(same_frames(*pair) for pair in zip((frames, lessons.scenes.known), before, strict=True))

    def test_some_scenes_are_for_checking_alone(self, eyes: EncodedVecEnv) -> None:
        """Nothing changes when nothing but those changes; and checking twice gives the same."""
        lessons, others = self.lessons(eyes, 16), self.lessons(eyes, 16)
        assert lessons.scenes.checked == 2
        others.scenes.known["landmarks"][:2] += 1.0
        assert lessons.check() == lessons.check() != others.check()
        batches = [one._batch(np.random.default_rng(0), None) for one in (lessons, others)]
        assert same_frames(*batches)

    def test_as_many_scenes_as_asked_for_each_with_a_fresh_look(self) -> None:
        """A scene depends on its number alone, whoever renders it; scenes, places and looks differ."""
        scenes = random_scenes("reach", {"wrist": PYRAMID}, 6, 0, workers=0)
        assert len({text.tobytes() for text in scenes.known["instruction"]}) > 2
        assert np.std(scenes.known["proprio"][:, :3], axis=0).min() > 0.005
        fewer = random_scenes("reach", {"wrist": PYRAMID}, 3, 0, workers=1)
        first = [one.look(np.arange(3), np.random.default_rng(0)) for one in (scenes, fewer)]
        assert same_frames(*first)
        again = scenes.look(np.arange(3), np.random.default_rng(1))
        assert not np.array_equal(again["wrist/boxes"], first[0]["wrist/boxes"])

    def test_scenes_look_like_what_the_environment_shows(self) -> None:
        """To the bit, where there were no pushes and there is no jitter."""
        still = {"wrist": PYRAMID.model_copy(update={"jitter": Jitter()})}
        scenes = random_scenes("reach", still, 12, 0, workers=0)
        shown = scenes.look(np.arange(12), np.random.default_rng(0))
        env = training_env("reach", still)
        alike = 0
        for scene in range(12):
            observation, _ = env.reset(seed=integer_seed(0, "reach", scene, "pretraining"))
            if np.array_equal(observation["proprio"], shown["proprio"][scene]):
                assert same_frames(observation, {name: values[scene] for name, values in shown.items()})
                alike += 1
        env.close()
        assert alike >= 1

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

    def test_an_episode_that_diverges_is_cut_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At what was last observed; the next one goes on as if nothing had been."""
        env = training_env(BRIEF, {"wrist": PYRAMID})
        first, _ = env.reset(seed=0)
        with monkeypatch.context() as broken:
            broken.setattr(Scene, "state_is_finite", lambda _: False)
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert same_frames(observation, first)
        assert (reward, terminated, truncated, info["diverged"]) == (-1.0, False, True, True)
        env.reset(seed=1)
        assert not any(env.step(env.action_space.sample())[2:4])
        env.close()

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
