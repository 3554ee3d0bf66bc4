"""Push: what it promises beyond what every environment does."""

from collections.abc import Iterator

import numpy as np
import pytest
from table import colour

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks.push import BLOCKS, HALF_SIZE, PHRASES, ZONES
from mrvlm_sim.tasks.registry import make_own_env
from mrvlm_sim.tasks.tabletop import COLOURS, LANDMARKS

HARDEST = "objects=[4, 4];spacing=0.08;target_radius=0.05;max_yaw=0.785;start_noise=0.06"


@pytest.fixture(scope="module")
def push() -> Iterator[ManipulationEnv]:
    environment = make_own_env("push")
    yield environment
    environment.close()


def on_table(env: ManipulationEnv) -> list[str]:
    return [block for block in BLOCKS if env.scene.position(block)[2] > -0.01]


def put(env: ManipulationEnv, offset: list[float], yaw: float = 0.0, block: str = BLOCKS[0]) -> bool:
    """Start anew with `block` at `offset` from the centre of the named zone on the table; whether that is success."""
    env.reset(seed=0)
    ground = env.scene.position(ZONES[0]) * [1, 1, 0]
    env.scene.place_object(block, ground + np.array(offset) + [0, 0, HALF_SIZE], yaw)
    env.scene.forward()
    return env.task.satisfied(env.scene)


def succeeds(env: ManipulationEnv, seed: int) -> bool:
    env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated):
        *_, terminated, truncated, _ = env.step(env.expert_action())
    return terminated


class TestReset:
    def test_it_never_begins_solved_or_with_a_cube_in_a_zone(self, push: ManipulationEnv) -> None:
        radius = push.task.parameters.target_radius
        for seed in range(300):
            push.reset(seed=seed)
            assert not push.solved()
            zones = np.array([push.scene.position(zone)[:2] for zone in ZONES])
            assert np.linalg.norm(zones[0] - zones[1]) >= 2 * radius
            for block in on_table(push):
                assert np.linalg.norm(push.scene.position(block)[:2] - zones, axis=1).min() > radius

    def test_the_instruction_names_one_cube_and_one_zone(self, push: ManipulationEnv) -> None:
        counts, cubes, goals = set(), set(), set()
        for seed in range(60):
            said = push.reset(seed=seed)[1]["instruction"]
            blocks, zones = ([colour(push.scene, body) for body in bodies] for bodies in (on_table(push), ZONES))
            assert said in [phrase.format(thing=blocks[0], goal=zones[0]) for phrase in PHRASES.seen]
            assert len(set(blocks)) == len(blocks)
            assert len(set(zones)) == 2
            counts, cubes, goals = counts | {len(blocks)}, cubes | {blocks[0]}, goals | {zones[0]}
        assert (counts, cubes, goals) == ({2, 3, 4}, set(COLOURS), set(COLOURS))

    def test_cubes_keep_apart(self, push: ManipulationEnv) -> None:
        for seed in range(40):
            push.reset(seed=seed)
            places = np.array([push.scene.position(block)[:2] for block in on_table(push)])
            apart = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(len(places), 1)]
            assert apart.min() >= push.task.parameters.spacing


class TestSuccess:
    """The zone's radius is 80 mm, a cube reaches 25 mm to its sides and 35 mm to its corners."""

    @pytest.mark.parametrize(
        ("offset", "yaw", "satisfied"),
        [
            ([0.0, 0.0, 0.0], 0.3, True),
            ([0.044, 0.0, 0.0], np.pi / 4, True),
            ([0.047, 0.0, 0.0], np.pi / 4, False),  # a corner sticks out
            ([0.047, 0.0, 0.0], 0.0, True),
            ([0.0, 0.055, 0.0], 0.0, False),
            ([0.0, 0.0, 0.01], 0.0, False),  # not on the table
        ],
    )
    def test_the_whole_cube_must_lie_in_the_zone(
        self, push: ManipulationEnv, offset: list[float], yaw: float, satisfied: bool
    ) -> None:
        assert put(push, offset, yaw) is satisfied

    def test_another_cube_does_not_count(self, push: ManipulationEnv) -> None:
        assert not put(push, [0, 0, 0], block=BLOCKS[1])

    def test_a_sliding_cube_does_not_count(self, push: ManipulationEnv) -> None:
        assert put(push, [0, 0, 0])
        push.data.qvel[push.model.joint(BLOCKS[0]).dofadr[0]] = 0.2
        push.scene.forward()
        assert not push.task.satisfied(push.scene)

    def test_it_must_be_held(self, push: ManipulationEnv) -> None:
        put(push, [0, 0, 0])
        ends = [push.step(np.zeros(5))[2] for _ in range(push.card.hold_steps)]
        assert ends == [False] * (push.card.hold_steps - 1) + [True]

    def test_nothing_opens_the_fingers(self, push: ManipulationEnv) -> None:
        push.reset(seed=0)
        for action in np.random.default_rng(0).uniform(-1, 1, (60, 5)):
            observation, *_ = push.step(np.array([*action[:4], 1.0]))
            assert abs(observation["proprio"][5]) < 0.001

    @pytest.mark.parametrize("reference", ["push", f"push[{HARDEST};friction=0.2]", f"push[{HARDEST};friction=0.9]"])
    def test_the_expert_succeeds_even_when_it_is_hard(self, reference: str) -> None:
        env = make_own_env(reference)
        assert sum(succeeds(env, seed) for seed in range(30)) >= 29
        env.close()


class TestReward:
    def test_it_grows_with_both_distances_closed(self, push: ManipulationEnv) -> None:
        push.reset(seed=0)
        far = push.task.reward(push.scene)
        put(push, [0, 0, 0])
        there = push.task.reward(push.scene)
        push.scene.place_object(BLOCKS[0], push.scene.fingertips(), 0.0)
        push.scene.forward()
        near = push.task.reward(push.scene)
        assert 0 < far < near < there < 1
        assert near >= 0.25
        assert there >= 0.75


class TestKnobs:
    @pytest.mark.parametrize("count", [1, 4])
    def test_the_number_of_cubes(self, count: int) -> None:
        env = make_own_env(f"push[objects=[{count}, {count}]]")
        for seed in range(5):
            env.reset(seed=seed)
            assert len(on_table(env)) == count

    def test_a_larger_zone_takes_in_more(self) -> None:
        env = make_own_env("push[target_radius=0.1]")
        assert put(env, [0.06, 0, 0])
        assert [env.model.geom(zone).size[0] for zone in ZONES] == [0.1, 0.1]

    def test_a_cube_slides_as_far_as_its_friction_lets_it(self) -> None:
        ways = []
        for friction in (0.2, 0.6, 0.9):
            env = make_own_env(f"push[objects=[1, 1];max_yaw=0.0;friction={friction}]")
            put(env, [0, 0, 0])
            start, speed = env.scene.position(BLOCKS[0]), 0.5
            env.data.qvel[env.model.joint(BLOCKS[0]).dofadr[0]] = speed
            for _ in range(8):
                env.step(np.zeros(5))
            ways.append(np.linalg.norm(env.scene.position(BLOCKS[0]) - start) * 2 * 9.81 / speed**2)
        assert 1 / np.array(ways) == pytest.approx([0.2, 0.6, 0.9], rel=0.2)

    def test_unseen_phrases_are_others(self, push: ManipulationEnv) -> None:
        other = make_own_env("push[unseen_phrases=true]")
        for seed in range(8):
            push.reset(seed=seed)
            said = other.reset(seed=seed)[1]["instruction"]
            names = {"thing": colour(push.scene, BLOCKS[0]), "goal": colour(push.scene, ZONES[0])}
            assert said in [phrase.format(**names) for phrase in PHRASES.unseen]

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("target_radios=0.08", "Did you mean 'target_radius'"),
            ("target_radius=0.03", "greater than or equal to 0.05"),
            ("friction=2.0", "less than or equal to 0.9"),
            ("spacing=0.01", "greater than or equal to 0.08"),
            ("objects=[4, 2]", r"\[fewest, most\]"),
            ("area_high=[0.68, 0.2]", "where the fingertips can reach"),
            ("area_low=[0.61, -0.2]", "area_low must lie below area_high"),
        ],
    )
    def test_what_cannot_be_is_refused(self, setting: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            make_own_env(f"push[{setting}]")


class TestLandmarks:
    def test_they_point_at_cubes_and_zones(self, push: ManipulationEnv) -> None:
        push.reset(seed=3)
        rows = push.task.landmarks(push.scene)
        assert (rows.shape, rows.dtype) == ((LANDMARKS, 3), np.float32)
        kinds = list(COLOURS)
        expected = {2 + kinds.index(colour(push.scene, body)): body for body in on_table(push)}
        expected |= {6 + kinds.index(colour(push.scene, body)): body for body in ZONES} | {0: BLOCKS[0], 1: ZONES[0]}
        assert set(np.flatnonzero(~np.isnan(rows[:, 0]))) == set(expected)
        for row, body in expected.items():
            assert rows[row] == pytest.approx(push.scene.position(body) - push.scene.fingertips(), abs=1e-6)

    def test_another_cube_and_zone_can_be_named(self, push: ManipulationEnv) -> None:
        push.reset(seed=3)
        rows = push.task.landmarks(push.scene)
        instructions, renamed = push.task.relabel(np.array([rows] * 20), np.random.default_rng(0))
        for said, after in zip(instructions, renamed, strict=True):
            # The zone is named first in some phrases, so both readings are tried.
            one, other = (list(COLOURS).index(word.strip(":,")) for word in said.split() if word.strip(":,") in COLOURS)
            readings = [(rows[2 + thing], rows[6 + goal]) for thing, goal in ((one, other), (other, one))]
            assert any((after[0] == thing).all() and (after[1] == goal).all() for thing, goal in readings)
        assert len(set(instructions)) > 5
