"""Peripheral picking: where the objects start in the wrist image, and what else it promises."""

from collections.abc import Iterator

import numpy as np
import pytest
from table import colour

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.sight import behind_robot, eccentricity, in_image
from mrvlm_sim.tasks import make_env
from mrvlm_sim.tasks.pick_place import OBJECTS, PHRASES, TARGETS

SIZE = 256  # pixels of the frames that are looked at
FIELD_OF_VIEW = 104  # degrees, of the wrist camera


@pytest.fixture(scope="module")
def peripheral() -> Iterator[ManipulationEnv]:
    environment = make_env("pick_peripheral")
    yield environment
    environment.close()


def on_table(env: ManipulationEnv) -> list[str]:
    return [name for name in OBJECTS if env.scene.position(name)[2] > 0]


def angles(env: ManipulationEnv) -> list[float]:
    return [float(eccentricity(env.scene, "wrist", env.scene.position(name))) for name in on_table(env)]


def shown(env: ManipulationEnv, name: str) -> np.ndarray:
    """Where the object is seen in the wrist frame, bool (SIZE, SIZE): pixels that change with its colour."""
    frames = []
    for rgb in ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)):
        env.scene.paint(name, rgb)
        frames.append(env.renderer.frame("wrist", SIZE).astype(int))
    return np.abs(frames[0] - frames[1]).max(axis=-1) > 60


@pytest.mark.parametrize(
    ("reference", "least", "most"),
    [
        ("pick_peripheral", 30, 45),
        ("pick_peripheral[eccentricity=[42.0, 52.0]]", 42, 52),
        ("pick_peripheral[eccentricity=[0.0, 20.0];start_noise=0.06]", 0, 20),
    ],
)
def test_every_object_starts_at_the_eccentricity_asked_for(reference: str, least: float, most: float) -> None:
    env, seen = make_env(reference), []
    for seed in range(100):
        env.reset(seed=seed)
        assert 2 <= len(on_table(env)) <= 4
        seen += angles(env)
    assert least <= min(seen) < least + 0.2 * (most - least)
    assert most - 0.2 * (most - least) < max(seen) <= most


def test_eccentricity_is_the_angle_in_the_picture(peripheral: ManipulationEnv) -> None:
    half = np.tan(np.radians(FIELD_OF_VIEW / 2))
    for seed in range(10):
        peripheral.reset(seed=seed)
        rows, columns = np.nonzero(shown(peripheral, OBJECTS[0]))
        u, v = 2 * columns.mean() / SIZE - 1, 2 * rows.mean() / SIZE - 1
        place = peripheral.scene.position(OBJECTS[0])
        assert in_image(peripheral.scene, "wrist", place) == pytest.approx([u, v], abs=0.03)
        in_picture = np.degrees(np.arctan(half * np.hypot(u, v)))
        assert in_picture == pytest.approx(eccentricity(peripheral.scene, "wrist", place), abs=1.5)


@pytest.mark.parametrize(
    "reference", ["pick_peripheral", "pick_peripheral[eccentricity=[0.0, 20.0]]", "pick_peripheral[half_size=0.01]"]
)
def test_every_object_is_in_plain_view(reference: str) -> None:
    env = make_env(reference)
    for seed in range(15):
        env.reset(seed=seed)
        for name in on_table(env):
            pixels = shown(env, name)
            env.model.geom_rgba[:, 3] = env.model.geom(name).id == np.arange(env.model.ngeom)
            alone = shown(env, name)
            env.model.geom_rgba[:, 3] = 1
            edge = np.concatenate([*alone[[0, -1]], *alone.T[[0, -1]]])
            assert not edge.any(), "cut off at the edge"
            assert pixels.sum() >= 0.75 * alone.sum() > 15  # another object may stand in front of a part
    env.close()


def test_what_is_behind_the_hand_is_known_to_be(peripheral: ManipulationEnv) -> None:
    peripheral.reset(seed=0)
    scene = peripheral.scene
    hand, eye = scene.position("hand"), scene.data.camera("wrist").xpos
    assert behind_robot(scene, "wrist", (hand + 0.5 * (hand - eye))[None])
    assert not behind_robot(scene, "wrist", (eye + 0.5 * (scene.position(OBJECTS[0]) - eye))[None])
    assert np.isnan(in_image(scene, "wrist", np.array([-0.5, 0, 0.5]))).all()


def test_its_place_does_not_tell_which_object_is_named(peripheral: ManipulationEnv) -> None:
    named, others = [], []
    for seed in range(300):
        peripheral.reset(seed=seed)
        assert not peripheral.solved()
        first, *rest = angles(peripheral)
        named.append(first)
        others += rest
    assert np.mean(named) == pytest.approx(np.mean(others), abs=1.0)
    assert np.std(named) == pytest.approx(np.std(others), rel=0.2)


def test_the_instruction_names_the_object_and_the_target() -> None:
    for setting, phrases in (("false", PHRASES.seen), ("true", PHRASES.unseen)):
        env, said = make_env(f"pick_peripheral[unseen_phrases={setting}]"), set()
        for seed in range(40):
            env.reset(seed=seed)
            named = {"thing": colour(env.scene, OBJECTS[0]), "goal": colour(env.scene, TARGETS[0])}
            matching = [phrase for phrase in phrases if phrase.format(**named) == env.instruction]
            assert matching
            said.update(matching)
        assert said == set(phrases)


def test_relabelling_names_what_is_there_in_the_task_s_own_phrases(peripheral: ManipulationEnv) -> None:
    peripheral.reset(seed=2)
    before = np.tile(peripheral.task.landmarks(peripheral.scene), (30, 1, 1))
    instructions, _ = peripheral.task.relabel(before, np.random.default_rng(0))
    objects, targets = ([colour(peripheral.scene, name) for name in names] for names in (on_table(peripheral), TARGETS))
    possible = {phrase.format(thing=a, goal=b) for phrase in PHRASES.seen for a in objects for b in targets}
    assert set(instructions) <= possible
    assert len(set(instructions)) > 5


def test_success_takes_the_named_object_on_the_named_target(peripheral: ManipulationEnv) -> None:
    for name, target, satisfied in (("object1", 0, False), ("object0", 1, False), ("object0", 0, True)):
        peripheral.reset(seed=0)
        place = peripheral.scene.position(TARGETS[target]) + np.array([0.02, 0, 0.0145])
        peripheral.scene.place_object(name, place, 0.0)
        peripheral.scene.forward()
        assert peripheral.solved() is satisfied


def test_an_object_that_hovers_does_not_count(peripheral: ManipulationEnv) -> None:
    peripheral.reset(seed=0)
    place = peripheral.scene.position(TARGETS[0]) + np.array([0, 0, 0.0245])
    peripheral.scene.place_object(OBJECTS[0], place, 0.0)
    peripheral.scene.forward()
    assert not peripheral.solved()


@pytest.mark.parametrize(
    "reference",
    [
        "pick_peripheral",
        "pick_peripheral[half_size=0.01;eccentricity=[42, 52];objects=[4, 4];spacing=0.08;max_yaw=0.8]",
    ],
)
def test_the_expert_brings_them(reference: str) -> None:
    env, successes = make_env(reference), 0
    for seed in range(40):
        env.reset(seed=seed)
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(env.expert_action())
            over = terminated or truncated
        successes += terminated
    assert successes >= 38


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("excentricity=[0, 20]", "Did you mean 'eccentricity'"),
        ("eccentricity=[30, 70]", "less than or equal to 52"),
        ("eccentricity=[40, 30]", "least, most"),
        ("half_size=0.05", "less than or equal to 0.025"),
        ("spacing=0.02", "greater than or equal to 0.08"),
        ("objects=[3, 2]", "fewest, most"),
        ("objects_low=[0.7, -0.3]", "objects_low must lie below objects_high"),
        ("objects_high=[0.64, 0.5]", "objects_low and objects_high must lie between"),
        ("area_low=[0.1, -0.2]", "area_low and area_high must lie between"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env(f"pick_peripheral[{setting}]")


def test_an_eccentricity_without_room_is_refused_with_a_remedy() -> None:
    env = make_env("pick_peripheral[eccentricity=[51, 52];objects=[4, 4]]")
    with pytest.raises(UserError, match=r"4 objects do not fit.*\[51\.0, 52\.0\] degrees.*widen"):
        env.reset(seed=0)
