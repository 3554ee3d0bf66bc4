"""Stack: what it promises beyond what every environment does."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import mujoco
import numpy as np
import pytest
from table import colour

from mrvlm_sim.errors import UserError
from mrvlm_sim.models.instruction import buckets
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.scene import PANDA_XML, TABLE_XML, Scene
from mrvlm_sim.sim.suite_env import get_state, set_state
from mrvlm_sim.tasks import environment_card, make_env
from mrvlm_sim.tasks.stack import CUBES, GOAL, PHRASES, THING
from mrvlm_sim.tasks.tabletop import COLOURS, GOALS, KINDS, THINGS

HALF = 0.02  # metres, of a cube by default
Arrange = Callable[[Scene], None]


@pytest.fixture(scope="module")
def stack() -> Iterator[ManipulationEnv]:
    environment = make_env("stack")
    yield environment
    environment.close()


def on_table(scene: Scene) -> list[str]:
    return [cube for cube in CUBES if scene.position(cube)[2] > 0]


def play_expert(env: ManipulationEnv, seed: int) -> dict:
    env.reset(seed=seed)
    over = False
    while not over:
        *_, terminated, truncated, info = env.step(env.expert_action())
        over = terminated or truncated
    return info


def test_the_instruction_names_two_cubes_of_different_colours(stack: ManipulationEnv) -> None:
    counts, pairs = set(), set()
    for seed in range(60):
        stack.reset(seed=seed)
        words, cubes = re.findall(r"\w+", stack.instruction), on_table(stack.scene)
        named = colour(stack.scene, THING), colour(stack.scene, GOAL)
        assert {word for word in words if word in COLOURS} == set(named)
        assert len({colour(stack.scene, cube) for cube in cubes}) == len(cubes)
        assert stack.instruction in [phrase.format(thing=named[0], goal=named[1]) for phrase in PHRASES.seen]
        counts.add(len(cubes))
        pairs.add(named)
    assert counts == {3, 4}
    assert len(pairs) == 12


def test_success_at_reset_is_never_true(stack: ManipulationEnv) -> None:
    for seed in range(300):
        stack.reset(seed=seed)
        assert not stack.solved()


@pytest.mark.parametrize("phrase", [*PHRASES.seen, *PHRASES.unseen])
def test_words_and_pairs_of_words_tell_the_upper_cube_from_the_lower(phrase: str) -> None:
    one, other = (phrase.format(thing=a, goal=b) for a, b in (("red", "blue"), ("blue", "red")))
    assert sorted(buckets(one)) != sorted(buckets(other))


def test_unseen_phrases_are_others() -> None:
    env = make_env("stack[unseen_phrases=true]")
    for seed in range(10):
        env.reset(seed=seed)
        named = {"thing": colour(env.scene, THING), "goal": colour(env.scene, GOAL)}
        assert env.instruction in [phrase.format(**named) for phrase in PHRASES.unseen]
    assert not set(PHRASES.seen) & set(PHRASES.unseen)


def put(cube: str, on: str, sideways: float = 0.0, up: float = 0.0) -> Arrange:
    """Places `cube` upon `on`, off its centre by so many metres."""

    def arrange(scene: Scene) -> None:
        place = scene.position(on) + np.array([sideways, 0, 2 * HALF + up])
        scene.place_object(cube, place, 0.3)
        scene.forward()

    return arrange


def push(scene: Scene) -> None:
    put(THING, GOAL)(scene)
    scene.data.qvel[scene.model.joint(THING).dofadr[0]] = 0.2


def on_two_storeys(scene: Scene) -> None:
    put(GOAL, "cube2")(scene)
    put(THING, GOAL)(scene)


CASES: dict[str, tuple[Arrange, bool]] = {
    "centred": (put(THING, GOAL), True),
    "within tolerance": (put(THING, GOAL, sideways=0.009), True),
    "beyond tolerance": (put(THING, GOAL, sideways=0.011), False),
    "hovering": (put(THING, GOAL, up=0.006), False),
    "on a distractor": (put(THING, "cube2"), False),
    "a distractor on the goal": (put("cube2", GOAL), False),
    "the other way round": (put(GOAL, THING), False),
    "moving": (push, False),
    "on a goal that was moved up": (on_two_storeys, False),
}


@pytest.mark.parametrize("case", CASES)
def test_success_and_failure(stack: ManipulationEnv, case: str) -> None:
    arrange, satisfied = CASES[case]
    stack.reset(seed=3)
    arrange(stack.scene)
    assert stack.solved() is satisfied
    assert (stack.task.reward(stack.scene) == 1.0) is satisfied


def test_what_is_held_is_not_stacked(stack: ManipulationEnv) -> None:
    stack.reset(seed=3)
    places = {cube: stack.scene.position(cube) for cube in on_table(stack.scene)}
    stack.scene.reset(places[GOAL] + np.array([0, 0, 2 * HALF]))
    for cube, place in places.items():
        stack.scene.place_object(cube, place, 0.0)
    stack.scene.place_object(THING, places[GOAL] + np.array([0, 0, 2 * HALF]), 0.0)
    stack.scene.data.qpos[stack.scene.arm.finger_index] = HALF - 0.0005
    stack.scene.forward()
    assert stack.scene.fingers_touching(THING) > 0
    assert stack.task.distances(stack.scene)["off_centre"] < 1e-6
    assert not stack.solved()


def test_it_must_hold_for_five_steps(stack: ManipulationEnv) -> None:
    stack.reset(seed=3)
    put(THING, GOAL)(stack.scene)
    ends = [stack.step(np.zeros(5))[2] for _ in range(5)]
    assert ends == [False] * 4 + [True]


@pytest.mark.parametrize(
    "reference", ["stack", "stack[half_size=0.012;tolerance=0.003;cubes=[4, 4];spacing=0.08;max_yaw=0.8]"]
)
def test_the_expert_stacks_them(reference: str) -> None:
    env = make_env(reference)
    infos = [play_expert(env, seed) for seed in range(40)]
    assert np.mean([info["is_success"] for info in infos]) >= 0.95
    assert np.median([info["off_centre"] for info in infos]) < 0.002


def test_the_dense_reward_rises_to_nought() -> None:
    env = make_env("stack[reward=dense]")
    env.reset(seed=0)
    rewards = [env.step(env.expert_action())[1] for _ in range(30)]
    assert np.all((np.array(rewards) >= -1) & (np.array(rewards) <= 0))
    assert rewards[0] < -0.5
    assert rewards[-1] == 0.0


def test_landmarks_are_the_named_cubes_and_every_colour_in_both_roles(stack: ManipulationEnv) -> None:
    stack.reset(seed=5)
    rows = stack.task.landmarks(stack.scene) + stack.scene.fingertips()
    assert rows[:2] == pytest.approx(np.array([stack.scene.position(THING), stack.scene.position(GOAL)]), abs=1e-6)
    things, goals = rows[THINGS : THINGS + KINDS], rows[GOALS : GOALS + KINDS]
    assert np.array_equal(things, goals, equal_nan=True)
    for cube in on_table(stack.scene):
        row = things[list(COLOURS).index(colour(stack.scene, cube))]
        assert row == pytest.approx(stack.scene.position(cube), abs=1e-6)
    assert (~np.isnan(things[:, 0])).sum() == len(on_table(stack.scene))


def test_relabelled_scenes_name_two_different_cubes_that_are_there(stack: ManipulationEnv) -> None:
    scenes = []
    for seed in range(40):
        stack.reset(seed=seed)
        scenes.append(stack.task.landmarks(stack.scene))
    before = np.array(scenes)
    instructions, renamed = stack.task.relabel(before, np.random.default_rng(0))
    assert np.array_equal(renamed[:, 2:], before[:, 2:], equal_nan=True)
    assert not np.isnan(renamed[:, :2]).any()
    pairs = set()
    for instruction, rows in zip(instructions, renamed, strict=True):
        there = rows[THINGS : THINGS + KINDS]
        one, other = (list(COLOURS)[int(np.nanargmin(np.linalg.norm(there - rows[i], axis=1)))] for i in (0, 1))
        assert instruction in [phrase.format(thing=one, goal=other) for phrase in PHRASES.seen]
        pairs.add((one, other))
        assert one != other
    assert len(pairs) > 8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tolerence=0.01", "Did you mean 'tolerance'"),
        ("tolerance=0.001", "greater than or equal to 0.003"),
        ("half_size=0.04", "less than or equal to 0.03"),
        ("cubes=[1, 3]", "greater than or equal to 2"),
        ("cubes=[4, 3]", "fewest, most"),
        ("spacing=0.05", "at least 3 half_size"),
        ("area_low=[0.60, -0.2]", "area_low must lie below area_high"),
        ("area_high=[0.75, 0.2]", "must lie between"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env(f"stack[{setting}]")


@pytest.mark.parametrize("half_size", [0.012, 0.03])
def test_a_resized_cube_is_one_that_was_made_so(half_size: float) -> None:
    env = make_env(f"stack[half_size={half_size};spacing=0.1]")
    env.reset(seed=0)
    _, folder = environment_card("stack")
    made = {path.name: path.read_bytes() for path in (PANDA_XML, TABLE_XML)}
    size, mass = f'size="{half_size} {half_size} {half_size}"', f'mass="{0.06 * (half_size / 0.025) ** 3}"'
    made["table.xml"] = made["table.xml"].replace(b'size="0.025 0.025 0.025"', size.encode())
    made["table.xml"] = made["table.xml"].replace(b'mass="0.06"', mass.encode())
    fresh = mujoco.MjModel.from_xml_string(Path(folder, "scene.xml").read_text(), made)
    for name in (
        "geom_size", "geom_rbound", "geom_aabb", "bvh_aabb", "body_mass", "body_inertia", "body_subtreemass",
        "body_invweight0", "dof_invweight0", "dof_M0", "body_iquat",
    ):  # fmt: skip
        assert getattr(env.model, name) == pytest.approx(getattr(fresh, name), rel=1e-9), name
    assert env.model.stat.extent == pytest.approx(fresh.stat.extent)


@pytest.mark.parametrize("kind", ["random", "bang-bang"])
def test_a_thousand_actions_keep_it_sound_and_restorable(stack: ManipulationEnv, kind: str) -> None:
    rng = np.random.default_rng(2)
    actions = rng.uniform(-1, 1, (1000, 5)) if kind == "random" else rng.choice([-1.0, 1.0], (1000, 5))
    actions[:, 2] -= 0.4
    stack.reset(seed=1)
    for action in actions[:990]:
        stack.step(action)
    assert np.isfinite(stack.data.qpos).all()
    assert np.abs(stack.data.qvel).max() < 50
    state, ends = get_state(stack.model, stack.data), []
    for _ in range(2):
        set_state(stack.model, stack.data, state)
        stack.scene.forward()
        set_state(stack.model, stack.data, state)
        stack.scene.arm.restore(stack.data)
        for action in actions[990:]:
            stack.step(action)
        ends.append(get_state(stack.model, stack.data))
    assert (ends[0] == ends[1]).all()
