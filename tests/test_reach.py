"""Reach: what it promises beyond what every environment does."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from table import colour

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks.reach import BALLS, PHRASES, REWARD_SCALE, START_CLEARANCE
from mrvlm_sim.tasks.registry import make_own_env
from mrvlm_sim.tasks.tabletop import COLOURS, LANDMARKS, closeness

SPARE = -0.1  # metres below which a ball is put away


@pytest.fixture(scope="module")
def reach() -> Iterator[ManipulationEnv]:
    environment = make_own_env("reach")
    yield environment
    environment.close()


def there(env: ManipulationEnv) -> list[str]:
    return [ball for ball in BALLS if env.scene.position(ball)[2] > SPARE]


def hold(env: ManipulationEnv, offset: np.ndarray, ball: str = BALLS[0]) -> None:
    """Place `ball` at `offset` from the fingertips."""
    env.scene.place_fixture(ball, env.scene.fingertips() + offset)
    env.scene.forward()


class TestReset:
    def test_it_never_begins_solved_or_near_a_ball(self, reach: ManipulationEnv) -> None:
        for seed in range(300):
            reach.reset(seed=seed)
            assert not reach.solved()
            away = [np.linalg.norm(reach.scene.position(ball) - reach.scene.fingertips()) for ball in there(reach)]
            assert min(away) > START_CLEARANCE - 0.001

    def test_the_instruction_names_one_ball_among_two_to_four(self, reach: ManipulationEnv) -> None:
        counts, named = set(), set()
        for seed in range(60):
            words = reach.reset(seed=seed)[1]["instruction"].split()
            colours = [colour(reach.scene, ball) for ball in there(reach)]
            named |= {colours[0]}
            counts.add(len(colours))
            assert len(set(colours)) == len(colours)
            assert [word for word in words if word in COLOURS] == colours[:1]
        assert (counts, named) == ({2, 3, 4}, set(COLOURS))

    def test_balls_lie_where_the_card_says(self, reach: ManipulationEnv) -> None:
        parameters = reach.task.parameters
        for seed in range(40):
            reach.reset(seed=seed)
            places = np.array([reach.scene.position(ball) for ball in there(reach)])
            assert (places >= parameters.area_low).all()
            assert (places <= parameters.area_high).all()
            apart = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(len(places), 1)]
            assert apart.min() >= parameters.spacing


class TestSuccess:
    def test_the_fingertips_must_be_within_the_tolerance(self, reach: ManipulationEnv) -> None:
        reach.reset(seed=0)
        for distance, satisfied in ((0.0, True), (0.019, True), (0.021, False)):
            hold(reach, np.array([0.6, 0.0, -0.8]) * distance)
            assert reach.task.satisfied(reach.scene) is satisfied

    def test_another_ball_does_not_count(self, reach: ManipulationEnv) -> None:
        reach.reset(seed=0)
        hold(reach, np.zeros(3), BALLS[1])
        assert not reach.task.satisfied(reach.scene)

    def test_it_must_be_held(self, reach: ManipulationEnv) -> None:
        reach.reset(seed=0)
        hold(reach, np.zeros(3))
        ends = [reach.step(np.zeros(5))[2] for _ in range(reach.card.hold_steps)]
        assert ends == [False] * (reach.card.hold_steps - 1) + [True]

    def test_passing_through_does_not_end_an_episode(self, reach: ManipulationEnv) -> None:
        reach.reset(seed=0)
        hold(reach, np.array([0, 0, 0.06]))
        steps = [reach.step(np.array([0, 0, 1.0, 0, 0])) for _ in range(5)]
        assert max(info["held_steps"] for *_, info in steps) >= 1
        assert not any(terminated for _, _, terminated, _, _ in steps)

    @pytest.mark.parametrize(
        "reference",
        [
            "reach",
            "reach[tolerance=0.005;targets=[4, 4]]",
            "reach[start_noise=0.06;area_low=[0.30, -0.32, 0.012];area_high=[0.68, 0.32, 0.40]]",
        ],
    )
    def test_the_expert_succeeds_even_when_it_is_hard(self, reference: str) -> None:
        env = make_own_env(reference)
        assert [succeeds(env, seed) for seed in range(40)].count(True) == 40
        env.close()


def succeeds(env: ManipulationEnv, seed: int) -> bool:
    env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated):
        *_, terminated, truncated, _ = env.step(env.expert_action())
    return terminated


class TestReward:
    def test_it_falls_with_the_distance_alone(self, reach: ManipulationEnv) -> None:
        reach.reset(seed=0)
        rewards = []
        for distance in (0.0, 0.02, 0.1, 0.3, 1.0):
            for way in (np.array([1.0, 0, 0]), np.array([0, -0.6, 0.8])):
                hold(reach, distance * way)
                rewards.append(reach.task.reward(reach.scene))
        assert rewards[::2] == pytest.approx(rewards[1::2])
        assert rewards[::2] == pytest.approx([1, 0.96, 0.5, 0.1, 0.01], abs=0.002)

    def test_it_is_smooth(self) -> None:
        distances = np.linspace(-0.5, 0.5, 2001)  # along a line through the goal
        slope = np.gradient(closeness(distances, REWARD_SCALE), distances)
        assert np.abs(slope).max() < 6.6  # per metre
        assert np.abs(np.diff(slope)).max() < 0.2

    def test_the_expert_gains_with_every_step(self) -> None:
        env = make_own_env("reach[reward=dense]")
        env.reset(seed=0)
        rewards, over = [env.task.reward(env.scene) - 1], False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.expert_action())
            rewards.append(reward)
            over = terminated or truncated
        env.close()
        assert all(later > earlier for earlier, later in pairwise(rewards[:-3]))
        assert rewards[-1] == 0 > rewards[-2] > -0.05


class TestKnobs:
    @pytest.mark.parametrize("count", [1, 4])
    def test_the_number_of_balls(self, count: int) -> None:
        env = make_own_env(f"reach[targets=[{count}, {count}]]")
        for seed in range(5):
            env.reset(seed=seed)
            assert len(there(env)) == count

    def test_tolerance_and_noise(self) -> None:
        env = make_own_env("reach[tolerance=0.05;start_noise=0.0]")
        starts = []
        for seed in range(3):
            env.reset(seed=seed)
            starts.append(env.scene.fingertips())
        hold(env, np.array([0, 0.045, 0]))
        assert env.solved()
        assert np.array(starts) == pytest.approx(np.tile(env.card.workspace.start, (3, 1)), abs=0.001)

    def test_unseen_phrases_are_others(self, reach: ManipulationEnv) -> None:
        other = make_own_env("reach[unseen_phrases=true]")
        for seed in range(12):
            said = [env.reset(seed=seed)[1]["instruction"] for env in (reach, other)]
            name = colour(reach.scene, BALLS[0])
            assert said[0] in [phrase.format(thing=name) for phrase in PHRASES.seen]
            assert said[1] in [phrase.format(thing=name) for phrase in PHRASES.unseen]
            assert (reach.scene.position(BALLS[0]) == other.scene.position(BALLS[0])).all()

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("tolerence=0.01", "Did you mean 'tolerance'"),
            ("tolerance=0.1", "less than or equal to 0.05"),
            ("targets=[3, 2]", r"\[fewest, most\]"),
            ("targets=[1, 5]", "less than or equal to 4"),
            ("spacing=0", "greater than 0"),
            ("start_noise=0.5", "less than or equal to 0.06"),
            ("area_high=[0.9, 0.2, 0.2]", "where the fingertips can reach"),
            ("area_low=[0.6, -0.2, 0.02]", "area_low must lie below area_high"),
        ],
    )
    def test_what_cannot_be_is_refused(self, setting: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            make_own_env(f"reach[{setting}]")


class TestLandmarks:
    def test_they_point_at_the_balls(self, reach: ManipulationEnv) -> None:
        reach.reset(seed=3)
        rows = reach.task.landmarks(reach.scene)
        assert (rows.shape, rows.dtype) == ((LANDMARKS, 3), np.float32)
        for ball in there(reach):
            row = rows[2 + list(COLOURS).index(colour(reach.scene, ball))]
            assert row == pytest.approx(reach.scene.position(ball) - reach.scene.fingertips(), abs=1e-6)
        assert (~np.isnan(rows[2:, 0])).sum() == len(there(reach))
        assert np.isnan(rows[1]).all()

    def test_another_ball_can_be_named(self, reach: ManipulationEnv) -> None:
        scenes = []
        for seed in range(20):
            reach.reset(seed=seed)
            scenes.append(reach.task.landmarks(reach.scene))
        instructions, renamed = reach.task.relabel(np.array(scenes), np.random.default_rng(0))
        for instruction, before, after in zip(instructions, scenes, renamed, strict=True):
            (name,) = (word for word in instruction.split() if word in COLOURS)
            assert (after[0] == before[2 + list(COLOURS).index(name)]).all()
        assert any((after[0] != before[0]).any() for before, after in zip(scenes, renamed, strict=True))
