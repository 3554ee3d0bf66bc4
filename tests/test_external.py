"""Environments of other packages: any Gymnasium environment on MuJoCo can be given a card."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import tomli_w
from external import FollowEnv, follow_card, register_follow
from gymnasium import spaces
from stable_baselines3 import PPO

from mrvlm_sim import paths
from mrvlm_sim.agents.baselines import NoOpPolicy, RandomPolicy, ScriptedExpert
from mrvlm_sim.agents.policy import Requirements, check_compatible
from mrvlm_sim.agents.registry import fitting_baselines, load_for
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.sim.card import ExternalCard
from mrvlm_sim.sim.external import ExternalEnv
from mrvlm_sim.sim.suite_env import decode_instruction, simulator_state
from mrvlm_sim.tasks import make_env
from mrvlm_sim.vision import Jitter, Pyramid, unpatchify
from mrvlm_sim.wrappers import MultiResolutionTokens

PYRAMID = Pyramid(frame_size=64, patch=8, grids=(4, 4), jitter=Jitter(tremor=0.3))
CLEAN = Condition()


@pytest.fixture(scope="module")
def card() -> ExternalCard:
    register_follow()
    return follow_card()


@pytest.fixture
def env(card: ExternalCard) -> Iterator[ExternalEnv]:
    made = ExternalEnv(card)
    yield made
    made.close()


def changed(card: ExternalCard, **values: Any) -> ExternalCard:
    return card.model_copy(update=values)


class TestObservations:
    def test_they_hold_what_the_card_says_and_what_the_environment_gives(self, env: ExternalEnv) -> None:
        observation, info = env.reset(seed=0)
        assert observation in env.observation_space
        assert set(observation) == {"state", "proprio", "instruction"}
        assert observation["proprio"].tolist() == observation["state"][[0, 1]].astype(np.float32).tolist()
        assert decode_instruction(observation["instruction"]) == info["instruction"] == "follow the ball"

    def test_cameras_have_the_names_of_the_card(self, env: ExternalEnv) -> None:
        env.reset(seed=0)
        assert env.cameras == ("scene", "under")
        assert env.render().shape == (360, 480, 3)

    def test_goal_markers_are_drawn(self, env: ExternalEnv) -> None:
        env.reset(seed=0)
        red, green, _ = np.moveaxis(env.renderer.frame("scene", 64).astype(int), -1, 0)
        assert (green > red + 50).any()


class TestTurnedCameras:
    def test_a_camera_that_hangs_upside_down_is_put_upright(self, card: ExternalCard) -> None:
        plain, turned = ExternalEnv(card), ExternalEnv(changed(card, turned=("scene",)))
        for env in (plain, turned):
            env.reset(seed=0)
        assert (plain.renderer.frame("scene", 64) == turned.renderer.frame("scene", 64)[::-1, ::-1]).all()
        assert (plain.renderer.frame("under", 64) == turned.renderer.frame("under", 64)).all()
        plain.close()
        turned.close()

    def test_both_sources_turn_alike(self, card: ExternalCard) -> None:
        seen = []
        for source in ("nested", "sensor"):
            env = ExternalEnv(changed(card, turned=("scene",)))
            wrapped = MultiResolutionTokens(
                env, {"scene": PYRAMID}, source, jitter_rng=np.random.default_rng(1)
            )  # fmt: skip
            seen.append(unpatchify(wrapped.reset(seed=0)[0]["scene/tokens"], PYRAMID)[1].astype(float))
            env.close()
        assert np.abs(seen[0] - seen[1]).mean() < 2
        assert np.abs(seen[0] - seen[1][::-1, ::-1]).mean() > 2


class TestActions:
    def test_the_whole_range_of_the_environment_is_one_unit_either_way(self, env: ExternalEnv) -> None:
        env.reset(seed=0)
        for action, native in ((-1, 0), (0, 1), (1, 2), (3, 2)):
            env.step(np.full(2, action, np.float32))
            assert env.inner.unwrapped.last_action.tolist() == [native, native]

    def test_a_card_may_make_units_smaller(self, card: ExternalCard) -> None:
        env = ExternalEnv(changed(card, action_scale=(0.5, 0.25)))
        env.reset(seed=0)
        env.step(np.ones(2))
        assert env.inner.unwrapped.last_action.tolist() == [1.5, 1.25]
        env.close()

    @pytest.mark.parametrize("action", [np.zeros(3), np.array([0, np.nan])])
    def test_what_is_no_action_is_refused(self, env: ExternalEnv, action: np.ndarray) -> None:
        env.reset(seed=0)
        with pytest.raises(ValueError, match="2 finite numbers"):
            env.step(action)


class TestEpisodes:
    def test_the_expert_solves_it_and_doing_nothing_does_not(self, env: ExternalEnv) -> None:
        outcomes = [run_episode(env, "follow", policy(), "p", CLEAN, 0, 0) for policy in (ScriptedExpert, NoOpPolicy)]
        assert [(o.error, o.success, o.success_once) for o in outcomes] == [("", True, True), ("", False, False)]
        assert outcomes[0].steps < outcomes[1].steps == env.card.max_steps

    def test_without_hold_steps_the_last_step_decides(self, card: ExternalCard) -> None:
        env = ExternalEnv(changed(card, hold_steps=None))
        outcome = run_episode(env, "follow", ScriptedExpert(), "p", CLEAN, 0, 0)
        assert (outcome.success, outcome.steps) == (True, card.max_steps)
        env.close()

    def test_success_at_reset_is_seen(self, card: ExternalCard) -> None:
        env = ExternalEnv(changed(card, arguments={"start_at_goal": True}))
        outcome = run_episode(env, "follow", NoOpPolicy(), "p", CLEAN, 0, 0)
        assert outcome.success_at_reset
        env.close()

    def test_records_repeat_and_looking_changes_nothing(self, env: ExternalEnv) -> None:
        class Blind(RandomPolicy):
            """Random."""

        class Looking(RandomPolicy):
            """Random, but looks."""

            requirements = Requirements(cameras={"scene": PYRAMID})

        blind, again, looking = (run_episode(env, "follow", p(), "p", CLEAN, 3, 1) for p in (Blind, Blind, Looking))
        assert (blind.end_hash, blind.frame_hash, blind.actions) == (again.end_hash, again.frame_hash, again.actions)
        assert (blind.end_hash, blind.actions) == (looking.end_hash, looking.actions)
        assert blind.frame_hash != looking.frame_hash

    def test_a_card_without_an_expert_refuses_the_expert(self, card: ExternalCard) -> None:
        env = ExternalEnv(changed(card, expert=None))
        with pytest.raises(UserError, match="no scripted expert"):
            check_compatible(ScriptedExpert(), env)
        check_compatible(RandomPolicy(), env)
        env.close()


def test_a_model_that_was_trained_on_the_plain_environment_acts_in_it(env: ExternalEnv, tmp_path: Path) -> None:
    plain = gymnasium.wrappers.RescaleAction(FollowEnv(), np.full(2, -1, np.float32), np.ones(2, np.float32))
    PPO("MlpPolicy", plain, n_steps=8, batch_size=8, device="cpu").save(tmp_path / "model")
    policy = load_for(str(tmp_path / "model.zip"), env, trust_pickle=True)
    record = run_episode(env, "follow", policy, "model", CLEAN, 0, 0)
    assert (record.error, record.steps) == ("", env.card.max_steps)


class Ends(FollowEnv):
    """Ends by itself as soon as the goal is reached."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, info["is_success"], truncated, info


class Forgets(FollowEnv):
    """Starts as it likes, whatever the seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        observation, info = super().reset(seed=None, options=options)
        self.data.qpos[:] = self.np_random.uniform(-0.1, 0.1, 2)
        return observation, info


class Rebuilds(FollowEnv):
    """Makes a new model in every reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.__init__()  # type: ignore[misc]
        return super().reset(seed=seed, options=options)


class Nested(FollowEnv):
    observation_space = spaces.Dict({"goal": spaces.Dict({"place": spaces.Box(0, 1, (3,))})})


class Taken(FollowEnv):
    observation_space = spaces.Dict({"proprio": spaces.Box(0, 1, (3,))})


def other(card: ExternalCard, kind: type[FollowEnv], **values: Any) -> ExternalCard:
    if "Other-v0" not in gymnasium.registry:
        gymnasium.register("Other-v0", entry_point=kind)
    gymnasium.registry["Other-v0"].entry_point = kind
    return changed(card, gymnasium_id="Other-v0", **values)


def test_without_an_expert_the_other_baselines_run(
    card: ExternalCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "envs" / "follow"
    folder.mkdir(parents=True)
    values = card.model_dump(mode="json", exclude={"expert"}, exclude_none=True)
    (folder / "env.toml").write_text(tomli_w.dumps(values))
    monkeypatch.setattr(paths, "data_folder", lambda name: tmp_path / name)
    assert fitting_baselines("follow") == ["random", "noop"]
    with_expert = values | {"expert": "external:FollowExpert"}
    (folder / "env.toml").write_text(tomli_w.dumps(with_expert))
    assert fitting_baselines("follow") == ["expert", "random", "noop"]


class TestDifficultEnvironments:
    def test_one_that_ends_by_itself_at_the_goal(self, card: ExternalCard) -> None:
        env = ExternalEnv(other(card, Ends))
        outcome = run_episode(env, "other", ScriptedExpert(), "p", CLEAN, 0, 0)
        assert (outcome.error, outcome.success, outcome.steps < card.max_steps) == ("", True, True)
        env.close()

    def test_one_that_ignores_seeds_is_refused(self, card: ExternalCard, env: ExternalEnv) -> None:
        env.check()
        careless = ExternalEnv(other(card, Forgets))
        with pytest.raises(UserError, match="starts differently from equal seeds"):
            careless.check()
        careless.close()

    def test_one_that_makes_new_models_is_an_error_not_a_wrong_picture(self, card: ExternalCard) -> None:
        class Looking(RandomPolicy):
            requirements = Requirements(cameras={"scene": PYRAMID})

        env = ExternalEnv(other(card, Rebuilds))
        assert "made another MuJoCo model" in run_episode(env, "other", Looking(), "p", CLEAN, 0, 0).error
        env.close()

    @pytest.mark.parametrize(("kind", "message"), [(Nested, "flatten it first"), (Taken, "called proprio, as ours")])
    def test_observations_that_cannot_be_read(self, card: ExternalCard, kind: type[FollowEnv], message: str) -> None:
        with pytest.raises(UserError, match=message):
            ExternalEnv(other(card, kind))

    def test_a_time_limit_of_gymnasiums_does_not_overrule_the_card(self, card: ExternalCard) -> None:
        env = ExternalEnv(other(card, FollowEnv))
        gymnasium.registry["Other-v0"].max_episode_steps = 3
        limited = ExternalEnv(other(card, FollowEnv))
        gymnasium.registry["Other-v0"].max_episode_steps = None
        for made in (env, limited):
            assert run_episode(made, "other", NoOpPolicy(), "p", CLEAN, 0, 0).steps == card.max_steps
            made.close()

    def test_other_render_modes_are_refused(self, card: ExternalCard) -> None:
        with pytest.raises(UserError, match="render_mode must be"):
            ExternalEnv(card, render_mode="human")

    def test_closing_the_wrapper_frees_its_renderer(self) -> None:
        wrapped = MultiResolutionTokens(FollowEnv(), {"top": PYRAMID})
        wrapped.reset(seed=0)
        assert wrapped.renderer.is_open
        wrapped.close()
        assert not wrapped.renderer.is_open


class TestWrongCards:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"package": "nosuchthing", "install": "nosuchthing[all]"}, "pip install 'nosuchthing\\[all\\]'"),
            ({"gymnasium_id": "NoSuchEnv-v0"}, "NoSuchEnv-v0 cannot be made"),
            ({"gymnasium_id": "CartPole-v1", "arguments": {}}, "no MuJoCo `model` and `data`"),
            ({"cameras": {"scene": "tpo"}}, "Did you mean 'top'"),
            ({"proprio": {"stat": [0]}}, "Did you mean 'state'"),
            ({"proprio": {"state": [0, 99]}}, "must lie within"),
            ({"action_scale": (1.0,)}, "must have 2 numbers"),
        ],
    )
    def test_they_are_refused_when_the_environment_is_made(
        self, card: ExternalCard, values: dict, message: str
    ) -> None:
        with pytest.raises(UserError, match=message):
            ExternalEnv(changed(card, **values))

    def test_a_wrong_success_key_is_an_error_with_the_nearest(self, card: ExternalCard) -> None:
        env = ExternalEnv(changed(card, success_key="is_sucess"))
        outcome = run_episode(env, "follow", NoOpPolicy(), "p", CLEAN, 0, 0)
        assert "Did you mean 'is_success'" in outcome.error
        env.close()

    @pytest.mark.parametrize(("values", "message"), [
        ({"cameras": {"top": "top"}}, "must be called 'scene'"),
        ({"turned": ["nose"]}, "turned cameras must be among"),
        ({"proprio": {}}, "at least 1 item"),
    ])  # fmt: skip
    def test_cards_are_checked_when_they_are_read(self, card: ExternalCard, values: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ExternalCard.model_validate(card.model_dump() | values)


class TestWrapperOverAnyEnvironment:
    def test_a_plain_observation_becomes_the_state(self) -> None:
        env = MultiResolutionTokens(FollowEnv(), {"top": PYRAMID})
        observation, _ = env.reset(seed=0)
        assert set(observation) == {"state", "top/tokens", "top/boxes"}
        assert observation in env.observation_space
        observation, *_ = env.step(np.ones(2, np.float32))
        assert observation in env.observation_space
        env.close()

    def test_gymnasiums_own_environments_can_be_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings there
        env = MultiResolutionTokens(gymnasium.make("HalfCheetah-v5"), {"track": PYRAMID})
        observation, _ = env.reset(seed=0)
        assert observation["track/tokens"].shape == (32, 192)
        assert observation["track/tokens"].std() > 0
        env.close()

    def test_an_environment_without_mujoco_is_refused(self) -> None:
        with pytest.raises(UserError, match="no MuJoCo `model` and `data`"):
            MultiResolutionTokens(gymnasium.make("CartPole-v1"), {"top": PYRAMID})

    def test_the_state_of_the_simulation_is_not_touched_by_looking(self, env: ExternalEnv) -> None:
        env.reset(seed=0)
        before = simulator_state(env)
        env.renderer.frame("scene", 32)
        assert (simulator_state(env) == before).all()


def test_a_folder_with_a_card_is_all_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_follow()
    folder = tmp_path / "envs" / "mine" / "follow"
    folder.mkdir(parents=True)
    (folder / "env.toml").write_text(
        """
        gymnasium_id = "Follow-v0"
        package = "gymnasium"
        install = "gymnasium"
        summary = "Follow the ball."
        instruction = "follow the ball"
        max_steps = 5
        success_key = "is_success"
        cameras = { scene = "top" }
        proprio = { state = [0, 1] }
        """
    )
    monkeypatch.setattr(paths, "data_folder", lambda name: tmp_path / name)
    env = make_env("mine/follow")
    outcome = run_episode(env, "mine/follow", RandomPolicy(), "random", CLEAN, 0, 0)
    assert (outcome.error, outcome.steps) == ("", 5)
    env.close()
