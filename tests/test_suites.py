"""The cards of Meta-World and Gymnasium-Robotics, where these are installed."""

import pickle
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium
import numpy as np
import pytest

from mrvlm_sim.agents.baselines import NoOpPolicy, RandomPolicy, ScriptedExpert
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.loading import load_object
from mrvlm_sim.sim.card import ExternalCard, environment_cards, is_external
from mrvlm_sim.sim.external import ExternalEnv
from mrvlm_sim.sim.suite_env import SuiteEnv, simulator_state
from mrvlm_sim.tasks import environment_card, make_env
from mrvlm_sim.vision import Jitter, Pyramid, unpatchify
from mrvlm_sim.wrappers import MultiResolutionTokens

PYRAMID = Pyramid(frame_size=128, patch=8, grids=(4, 4, 4), jitter=Jitter(tremor=0.3))
CLEAN = Condition()
NAMES = [name for name, path in environment_cards().items() if is_external(path)]
META_WORLD = [name for name in NAMES if name.startswith("metaworld/")]
pytestmark = pytest.mark.filterwarnings("ignore:Constant.s. may be too high")  # Meta-World's experts, always


def card_of(name: str) -> ExternalCard:
    card, _ = environment_card(name)
    assert isinstance(card, ExternalCard)
    return card


def installed(name: str) -> bool:
    try:
        return bool(version(card_of(name).package))
    except PackageNotFoundError:
        return False


def needs(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"needs {card_of(name).package}"))


@pytest.fixture(scope="module", params=[needs(name) for name in NAMES])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def env(name: str) -> Iterator[SuiteEnv]:
    made = make_env(name)
    yield made
    made.close()


def start(env: SuiteEnv, seed: int) -> dict[str, np.ndarray]:
    observation, _ = env.reset(seed=seed)
    picture = env.renderer.frame("scene", 64)
    return observation | {"everything": simulator_state(env), "picture": picture}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def outcome(env: SuiteEnv, name: str, policy: Any, episode: int = 0) -> EpisodeRecord:
    return run_episode(env, name, policy, "p", CLEAN, 0, episode)


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_complete(name: str) -> None:
    card = card_of(name)
    assert card.summary
    assert card.expert
    assert card.install.startswith("mrvlm_sim[")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named(name: str) -> None:
    if installed(name):
        pytest.skip("it is installed")
    with pytest.raises(UserError, match="pip install 'mrvlm_sim"):
        make_env(name)


class TestEveryEnvironment:
    def test_the_same_seed_gives_the_same_start_whatever_ran_before(self, env: SuiteEnv, name: str) -> None:
        first = start(env, 7)
        outcome(env, name, RandomPolicy(), episode=3)
        assert same(first, start(env, 7))
        fresh = make_env(name)
        assert same(first, start(fresh, 7))
        fresh.close()

    def test_other_seeds_give_other_starts(self, env: SuiteEnv) -> None:
        starts = [start(env, seed) for seed in range(4)]
        assert len({one["picture"].tobytes() for one in starts}) == 4

    def test_episodes_repeat_whether_or_not_somebody_looks(self, env: SuiteEnv, name: str) -> None:
        class Looking(RandomPolicy):
            requirements = load_object("mrvlm_sim.agents.policy:Requirements")(
                cameras={"scene": PYRAMID}, frame_interval=10
            )

        blind, looking = outcome(env, name, RandomPolicy()), outcome(env, name, Looking())
        fresh = make_env(name)
        again = outcome(fresh, name, RandomPolicy())
        fresh.close()
        assert blind.error == looking.error == again.error == ""
        assert blind.end_hash == looking.end_hash == again.end_hash

    @pytest.mark.parametrize("kind", ["random", "bang-bang", "zero"])
    def test_any_actions_keep_the_simulation_sound(self, env: SuiteEnv, kind: str) -> None:
        rng = np.random.default_rng(0)
        shape = (50, env.action_size)
        actions = {
            "random": rng.uniform(-1, 1, shape), "bang-bang": rng.choice([-1.0, 1.0], shape), "zero": np.zeros(shape)
        }[kind]  # fmt: skip
        env.reset(seed=0)
        for action in actions:
            observation, *_, terminated, truncated, _ = env.step(action)
            assert all(np.isfinite(part).all() for part in observation.values())
            if terminated or truncated:
                break

    def test_the_expert_solves_it_and_doing_nothing_does_not(self, env: SuiteEnv, name: str) -> None:
        solved = [outcome(env, name, ScriptedExpert(), episode) for episode in range(10)]
        idle = [outcome(env, name, NoOpPolicy(), episode) for episode in range(3)]
        assert {record.error for record in solved + idle} == {""}
        assert sum(record.success for record in solved) >= 9
        assert all(record.success_at_reset or not record.success for record in idle)

    def test_every_camera_sees_something_through_a_pyramid(self, env: SuiteEnv) -> None:
        views = {}
        for source in ("nested", "sensor"):
            rng = np.random.default_rng(0)
            wrapped = MultiResolutionTokens(env, dict.fromkeys(env.cameras, PYRAMID), source, jitter_rng=rng)
            observation, _ = wrapped.reset(seed=0)
            assert observation in wrapped.observation_space
            views[source] = {c: unpatchify(observation[f"{c}/tokens"], PYRAMID)[0].astype(float) for c in env.cameras}
        for camera in env.cameras:
            assert views["nested"][camera].std() > 5
            assert np.abs(views["nested"][camera] - views["sensor"][camera]).mean() < 6


@pytest.mark.skipif(not installed(META_WORLD[0]), reason="needs metaworld")
class TestMetaWorld:
    def test_by_itself_it_ignores_seeds(self) -> None:
        """Why its cards name a wrapper of ours: were it mended, the wrapper could go."""
        plain = gymnasium.make(
            "metaworld:Meta-World/goal_observable", env_name="reach-v3", seed=0, disable_env_checker=True
        ).unwrapped
        assert (plain.reset(seed=1)[0] == plain.reset(seed=2)[0]).all()

    @pytest.mark.parametrize("name", META_WORLD)
    def test_the_expert_does_as_well_as_in_its_own_loop(self, name: str) -> None:
        """From the same starts, episode by episode."""
        ours = make_env(name)
        assert isinstance(ours, ExternalEnv)
        for episode in range(8):
            record = outcome(ours, name, ScriptedExpert(), episode)
            vector = ours.inner.unwrapped._last_rand_vec  # type: ignore[attr-defined]
            assert record.success == own_loop(card_of(name), vector)
        ours.close()


def own_loop(card: ExternalCard, vector: np.ndarray) -> bool:
    """Meta-World's way to evaluate one of its tasks: until the first success, or 500 steps."""
    from metaworld import ALL_V3_ENVIRONMENTS, Task

    task = str(card.arguments["task"])
    env_class = ALL_V3_ENVIRONMENTS[task]
    env, expert = env_class(), load_object(str(card.expert))()
    data = {"env_cls": env_class, "rand_vec": vector, "partially_observable": False}
    env.set_task(Task(env_name=task, data=pickle.dumps(data)))
    observation, _ = env.reset()
    for _ in range(env.max_path_length):
        action = np.clip(expert.get_action(observation), -1, 1)
        observation, _, _, _, info = env.step(action)
        if info["success"]:
            return True
    return False
