"""What every environment promises, checked over every card in `envs/`; and the arm that all of them share."""

import gc
import warnings
from collections.abc import Iterator

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

import mrvlm_sim  # noqa: F401 (registers the environments)
from mrvlm_sim.cards import read_card
from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.arm import FINGERS_DOWN, READY
from mrvlm_sim.sim.camera import Renderer
from mrvlm_sim.sim.card import EnvironmentCard, environment_cards, is_external
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import INSTRUCTION_BYTES, decode_instruction, encode_instruction, simulator_state
from mrvlm_sim.tasks import make_env
from mrvlm_sim.tasks.pick_place import COLOURS

CARDS = {name: path for name, path in environment_cards().items() if not is_external(path)}


@pytest.fixture(scope="module", params=CARDS)
def env(request: pytest.FixtureRequest) -> Iterator[ManipulationEnv]:
    made = gymnasium.make(read_card(CARDS[request.param], EnvironmentCard).id)
    assert isinstance(made.unwrapped, ManipulationEnv)
    yield made.unwrapped
    made.close()


@pytest.fixture(scope="module")
def pick_place() -> Iterator[ManipulationEnv]:
    environment = make_env("pick_place")
    yield environment
    environment.close()


def first_moment(env: ManipulationEnv, seed: int) -> dict[str, np.ndarray]:
    observation, _ = env.reset(seed=seed)
    return observation | {"state": simulator_state(env), "frame": env.renderer.frame("wrist", 64)}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


def play(env: ManipulationEnv, actions: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [env.step(action)[0] | {"state": simulator_state(env)} for action in actions]


class TestEveryEnvironment:
    def test_gymnasium_accepts_it(self, env: ManipulationEnv) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*-?infinity")  # proprioception has no natural bounds
            check_env(env)

    def test_stable_baselines3_accepts_it(self, env: ManipulationEnv) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env_of_sb3(env)

    def test_it_is_made_by_its_id(self, env: ManipulationEnv) -> None:
        made = gymnasium.make(env.card.id)
        assert (made.unwrapped.card, made.unwrapped.render_mode) == (env.card, "rgb_array")
        observation, _ = made.reset(seed=3)
        ours, _ = env.reset(seed=3)
        assert same(observation, ours)
        made.close()

    def test_the_same_seed_gives_the_same_start(self, env: ManipulationEnv) -> None:
        first = first_moment(env, 7)
        env.reset(seed=8)
        assert same(first, first_moment(env, 7))

    def test_other_seeds_give_other_starts(self, env: ManipulationEnv) -> None:
        starts = [first_moment(env, seed) for seed in range(4)]
        for i, one in enumerate(starts):
            assert not any((one["state"] == other["state"]).all() for other in starts[:i])
            assert not any((one["frame"] == other["frame"]).all() for other in starts[:i])
        assert len({decode_instruction(start["instruction"]) for start in starts}) > 1

    def test_an_episode_does_not_depend_on_what_ran_before(self, env: ManipulationEnv) -> None:
        actions = np.random.default_rng(0).uniform(-1, 1, (15, 5))
        actions[:, 2] = -1  # into the table
        env.reset(seed=1)
        fresh = play(env, actions)
        env.reset(seed=2)
        play(env, -actions)
        env.render()
        env.reset(seed=1)
        assert all(same(*pair) for pair in zip(fresh, play(env, actions), strict=True))

    @pytest.mark.parametrize("kind", ["random", "bang-bang", "down", "away"])
    def test_any_actions_keep_the_simulation_sound(self, env: ManipulationEnv, kind: str) -> None:
        rng, steps = np.random.default_rng(5), env.card.max_steps
        actions = {
            "random": rng.uniform(-1, 1, (steps, 5)),
            "bang-bang": rng.choice([-1.0, 1.0], (steps, 5)),
            "down": np.tile([0.3, 0.2, -1.0, 1.0, -1.0], (steps, 1)),
            "away": np.tile([1.0, -1.0, 1.0, -1.0, 1.0], (steps, 1)),
        }[kind].astype(np.float32)
        env.reset(seed=11)
        arm, data, ended = env.scene.arm, env.scene.data, False
        low, high = np.array(env.card.workspace.low), np.array(env.card.workspace.high)
        for action in actions:
            observation, reward, terminated, truncated, _ = env.step(action)
            assert observation in env.observation_space
            assert all(np.isfinite(part).all() for part in observation.values())
            assert np.isfinite(data.qvel).all()
            joints = data.qpos[arm.qpos_index]
            assert (joints >= arm.joint_low - 0.01).all()
            assert (joints <= arm.joint_high + 0.01).all()
            assert (env.scene.fingertips() > low - 0.03).all()
            assert (env.scene.fingertips() < high + 0.03).all()
            ended = terminated or truncated
            assert reward == float(terminated)
            if ended:
                break
        assert ended, "the last step allowed must end the episode"

    @pytest.mark.parametrize(
        "action", [np.zeros(4), np.zeros((1, 5)), np.full(5, np.nan), np.array([0, 0, 0, 0, np.inf])]
    )
    def test_what_is_no_action_is_refused(self, env: ManipulationEnv, action: np.ndarray) -> None:
        env.reset(seed=0)
        before = simulator_state(env)
        with pytest.raises(ValueError, match="5 finite numbers"):
            env.step(action)
        assert (simulator_state(env) == before).all()

    def test_actions_beyond_the_range_are_clipped(self, env: ManipulationEnv) -> None:
        ends = []
        for size in (1.0, 50.0):
            env.reset(seed=0)
            ends.append(play(env, np.full((2, 5), size))[-1])
        assert same(*ends)

    def test_info_tells_success_and_distances(self, env: ManipulationEnv) -> None:
        _, info = env.reset(seed=0)
        expected = {"is_success", "held_steps", "instruction", *env.task.distances(env.scene)}
        assert expected <= info.keys()
        assert info["is_success"] is False
        info = env.step(np.zeros(5))[-1]
        assert expected <= info.keys()
        lengths = [info[key] for key in env.task.distances(env.scene)]
        assert all(isinstance(length, float) and 0 <= length < 2 for length in lengths)

    def test_the_expert_succeeds(self, env: ManipulationEnv) -> None:
        for seed in range(10):
            env.reset(seed=seed)
            over = False
            while not over:
                _, reward, terminated, truncated, info = env.step(env.task.expert_action(env.scene))
                over = terminated or truncated
            assert terminated, f"seed {seed}: {info}"
            assert info["is_success"]
            assert info["held_steps"] == env.card.hold_steps
            assert reward == 1.0

    def test_doing_nothing_does_not_succeed(self, env: ManipulationEnv) -> None:
        env.reset(seed=0)
        for _ in range(20):
            *_, terminated, _, info = env.step(np.zeros(5))
            assert not terminated
        assert info["held_steps"] == 0

    def test_the_picture_shows_the_scene(self, env: ManipulationEnv) -> None:
        env.reset(seed=0)
        picture = env.render()
        assert (picture.shape, picture.dtype) == ((360, 480, 3), np.uint8)
        assert picture.std() > 10
        play(env, np.ones((5, 5)))
        assert (env.render() != picture).any()

    def test_a_closed_environment_can_be_closed_again(self, env: ManipulationEnv) -> None:
        env.render()
        env.close()
        env.close()
        env.reset(seed=0)
        assert env.render().std() > 10

    def test_one_that_is_dropped_unclosed_leaves_others_alone(self, env: ManipulationEnv) -> None:
        env.reset(seed=0)
        dropped = gymnasium.make(env.card.id)
        dropped.reset(seed=1)
        dropped.render()
        picture = env.render()
        del dropped
        gc.collect()
        after = env.render()
        env.close()  # a damaged context must not spoil the tests that follow
        assert (after == picture).all()

    def test_what_is_dropped_amidst_a_picture_is_freed_before_the_next(self, env: ManipulationEnv) -> None:
        dropped = Renderer(env.model, lambda: env.data)
        dropped.frame("wrist", 32)
        buffers = dropped._buffers
        del dropped
        gc.collect()
        assert buffers.is_open  # its context is left alone until a picture begins
        env.render()
        assert not buffers.is_open

    def test_the_dense_solver_is_used(self, env: ManipulationEnv) -> None:
        assert not mujoco.mj_isSparse(env.scene.model)


class TestPickPlace:
    """Named bodies are number 0 of each kind; the rest are distractors."""

    @pytest.mark.parametrize("seed", range(8))
    def test_the_instruction_names_what_lies_there_among_distractors(
        self, pick_place: ManipulationEnv, seed: int
    ) -> None:
        observation, info = pick_place.reset(seed=seed)
        scene = pick_place.scene
        words = decode_instruction(observation["instruction"]).split()
        assert info["instruction"].split() == words
        named_object, named_target = (word for word in words if word in COLOURS)

        def colour(body: str) -> str:
            rgb = scene.model.geom(body).rgba[:3]
            return min(COLOURS, key=lambda name: np.abs(rgb - COLOURS[name]).max())

        def on_table(body: str) -> bool:
            x, y, z = scene.position(body)
            return abs(x - 0.35) < 0.45 and abs(y) < 0.6 and -0.001 < z < 0.05

        objects = [body for body in ("object0", "object1", "object2", "object3") if on_table(body)]
        targets = [body for body in ("target0", "target1") if on_table(body)]
        assert 2 <= len(objects) <= 4
        assert len(targets) == 2
        assert colour("object0") == named_object
        assert colour("target0") == named_target
        assert named_object not in [colour(body) for body in objects[1:]]
        assert named_target not in [colour(body) for body in targets[1:]]
        places = np.array([scene.position(body)[:2] for body in objects + targets])
        apart = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(len(places), 1)]
        assert apart.min() >= 0.1

    def test_every_colour_and_count_occurs(self, pick_place: ManipulationEnv) -> None:
        seen = [pick_place.reset(seed=seed)[1]["instruction"].split() for seed in range(40)]
        assert {words[2] for words in seen} == {words[6] for words in seen} == set(COLOURS)

    def test_the_wrong_object_does_not_count(self, pick_place: ManipulationEnv) -> None:
        pick_place.reset(seed=0)
        scene = pick_place.scene
        for body, satisfied in (("object1", False), ("object0", True)):
            pick_place.reset(seed=0)
            scene.place_object(body, scene.position("target0") + np.array([0, 0, 0.0195]), 0.0)
            scene.forward()
            assert pick_place.task.satisfied(scene) is satisfied


class TestInstruction:
    @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
    def test_any_text_survives(self, text: str) -> None:
        encoded = encode_instruction(text)
        assert (encoded.shape, encoded.dtype) == ((INSTRUCTION_BYTES,), np.uint8)
        assert decode_instruction(encoded) == text

    def test_the_limit_is_in_bytes(self) -> None:
        assert decode_instruction(encode_instruction("x" * 256)) == "x" * 256
        with pytest.raises(UserError, match=r"256 bytes.*not 258"):
            encode_instruction("方" * 86)


def denavit_hartenberg(joints: np.ndarray) -> np.ndarray:
    """Pose (4, 4) of the fingertips by the table that Franka publishes (Craig's convention)."""
    a = [0, 0, 0, 0.0825, -0.0825, 0, 0.088]
    d = [0.333, 0, 0.316, 0, 0.384, 0, 0]
    alpha = np.array([0, -1, 1, 1, -1, 1, 1]) * np.pi / 2

    def screw(axis: int, angle: float, length: float) -> np.ndarray:
        one, other = [(1, 2), (2, 0), (0, 1)][axis]
        pose = np.eye(4)
        pose[one, one] = pose[other, other] = np.cos(angle)
        pose[other, one], pose[one, other] = np.sin(angle), -np.sin(angle)
        pose[axis, 3] = length
        return pose

    pose = np.eye(4)
    for link in range(7):
        pose = pose @ screw(0, alpha[link], a[link]) @ screw(2, joints[link], d[link])
    return pose @ screw(2, -np.pi / 4, 0.107 + 0.1034)


class TestArm:
    def test_masses_and_limits_are_the_published_ones(self, pick_place: ManipulationEnv) -> None:
        model, arm = pick_place.scene.model, pick_place.scene.arm
        links = sum(model.body(f"link{i}").mass[0] for i in range(8))
        hand = sum(model.body(name).mass[0] for name in ("hand", "left_finger", "right_finger"))
        assert links == pytest.approx(16.6919, abs=1e-3)  # Gaz et al., 2019; the data sheet says about 18 kg
        assert hand == pytest.approx(0.73 + 2 * 0.015)
        low = [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]
        high = [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]
        assert arm.joint_low == pytest.approx(low)
        assert arm.joint_high == pytest.approx(high)
        assert model.actuator_ctrlrange[arm.actuator_index] == pytest.approx(np.array([low, high]).T)

    def test_forward_kinematics_is_the_published_one(self, pick_place: ManipulationEnv) -> None:
        model, arm = pick_place.scene.model, pick_place.scene.arm
        data = mujoco.MjData(model)
        rng = np.random.default_rng(0)
        for joints in [READY, *rng.uniform(arm.joint_low, arm.joint_high, (6, 7))]:
            data.qpos[arm.qpos_index] = joints
            mujoco.mj_kinematics(model, data)
            pose = denavit_hartenberg(joints)
            assert arm.position(data) == pytest.approx(pose[:3, 3], abs=1e-6)
            assert data.site_xmat[arm.tcp].reshape(3, 3) == pytest.approx(pose[:3, :3], abs=1e-6)

    def test_fingers_point_down_in_the_ready_posture(self) -> None:
        assert denavit_hartenberg(READY)[:3, :3] == pytest.approx(FINGERS_DOWN, abs=1e-6)

    @pytest.mark.parametrize("axis", range(4))
    def test_an_action_moves_the_hand_by_its_unit(self, pick_place: ManipulationEnv, axis: int) -> None:
        pick_place.reset(seed=0)
        scale = pick_place.card.action
        start = np.array([*pick_place.scene.fingertips(), pick_place.scene.arm.heading(pick_place.scene.data)])
        action = np.zeros(5)
        action[axis] = 1.0
        for _ in range(2):
            pick_place.step(action)
        for _ in range(3):
            pick_place.step(np.zeros(5))
        moved = np.array([*pick_place.scene.fingertips(), pick_place.scene.arm.heading(pick_place.scene.data)]) - start
        expected = 2 * np.eye(4)[axis] * [*[scale.translation] * 3, scale.yaw]
        assert moved == pytest.approx(expected, abs=0.004)

    def test_the_gripper_closes_opens_and_holds(self, pick_place: ManipulationEnv) -> None:
        pick_place.reset(seed=0)
        openings = []
        for gripper in (-1.0, 0.0, 1.0, 0.0):
            for _ in range(4):
                observation, *_ = pick_place.step(np.array([0, 0, 0, 0, gripper]))
            openings.append(observation["proprio"][5])
        assert openings == pytest.approx([0, 0, 0.08, 0.08], abs=0.003)

    def test_the_fingertips_are_the_centre_of_the_wrist_image(self, pick_place: ManipulationEnv) -> None:
        pick_place.reset(seed=4)
        play(pick_place, np.random.default_rng(0).uniform(-1, 1, (6, 5)))
        camera = pick_place.scene.data.camera("wrist")
        x, y, z = camera.xmat.reshape(3, 3).T @ (pick_place.scene.fingertips() - camera.xpos)
        half = np.tan(np.radians(pick_place.scene.model.camera("wrist").fovy[0]) / 2)
        assert z < 0
        assert [x / -z / half, y / -z / half] == pytest.approx([0, 0], abs=1 / 512)  # half a pixel of 512
