"""The two sources of views agree, and the wrapper around them keeps its contract."""

from collections.abc import Iterator

import numpy as np
import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.tasks import make_env
from mrvlm_sim.vision import Jitter, Pyramid, unpatchify
from mrvlm_sim.wrappers import MultiResolutionTokens

JITTER = Jitter(tremor=0.3, drift=0.2)
LARGE = Pyramid(frame_size=512, patch=32, grids=(4, 4, 4), jitter=JITTER)
SMALL = Pyramid(frame_size=128, patch=8, grids=(4, 4, 4), jitter=JITTER)
CAMERAS = ("wrist", "scene")


def wrapped(
    env: ManipulationEnv, pyramid: Pyramid = SMALL, cameras: tuple = ("wrist",), **options
) -> MultiResolutionTokens:
    rng = np.random.default_rng(0)
    return MultiResolutionTokens(env, dict.fromkeys(cameras, pyramid), jitter_rng=rng, **options)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[tuple[Observation, Observation]]]:
    """What `nested` and `sensor` show of the same twelve moments, through both cameras."""
    envs = [wrapped(make_env("pick_place"), LARGE, CAMERAS, source=s, frame_interval=8) for s in ("nested", "sensor")]
    rng, seen = np.random.default_rng(1), []
    for seed in range(4):
        seen.append(tuple(env.reset(seed=seed)[0] for env in envs))
        for step in range(1, 17):
            action = rng.uniform(-1, 1, 5) - [0, 0, 0.4, 0, 0]
            observations = tuple(env.step(action)[0] for env in envs)
            if step % 8 == 0:
                seen.append(observations)
    yield seen
    for env in envs:
        env.close()


class TestNestedAgainstSensor:
    @pytest.mark.parametrize("camera", CAMERAS)
    def test_boxes_are_the_same_and_jitter(self, pairs: list, camera: str) -> None:
        for nested, sensor in pairs:
            assert (nested[f"{camera}/boxes"] == sensor[f"{camera}/boxes"]).all()
        assert len({nested[f"{camera}/boxes"].tobytes() for nested, _ in pairs}) == len(pairs)

    @pytest.mark.parametrize("camera", CAMERAS)
    def test_coarser_levels_are_close(self, pairs: list, camera: str) -> None:
        for pair in pairs:
            nested, sensor = (unpatchify(seen[f"{camera}/tokens"], LARGE) for seen in pair)
            assert [psnr(*views) >= 40 for views in zip(nested[:2], sensor[:2], strict=True)] == [True, True]

    def test_the_finest_level_is_the_same(self, pairs: list) -> None:
        """Save for ties of the rasteriser's grid: a vertex turns a pixel or two, rarely an edge slips by one sample."""
        different = []
        for nested, sensor in pairs:
            for camera in CAMERAS:
                one, other = (unpatchify(seen[f"{camera}/tokens"], LARGE)[2] for seen in (nested, sensor))
                different.append(int((one != other).any(axis=-1).sum()))
        assert np.mean(np.array(different) <= 2) >= 0.9
        assert max(different) <= 0.01 * LARGE.view_sizes[2] ** 2
        assert np.mean(np.array(different) == 0) >= 0.8


@pytest.mark.parametrize("source", ["nested", "sensor"])
class TestEitherSource:
    def test_the_space_contains_what_it_shows(self, env: ManipulationEnv, source: str) -> None:
        wrapper = wrapped(env, cameras=CAMERAS, source=source)
        observation, _ = wrapper.reset(seed=0)
        assert observation.keys() == wrapper.observation_space.keys()
        for _ in range(3):
            assert observation in wrapper.observation_space
            for camera in CAMERAS:
                tokens, boxes = observation[f"{camera}/tokens"], observation[f"{camera}/boxes"]
                assert (tokens.shape, tokens.dtype) == ((48, 192), np.uint8)
                assert (boxes.shape, boxes.dtype) == ((48, 4), np.float32)
            observation, *_ = wrapper.step(wrapper.action_space.sample())

    def test_cameras_differ_and_jitter_apart(self, env: ManipulationEnv, source: str) -> None:
        observation, _ = wrapped(env, cameras=CAMERAS, source=source).reset(seed=0)
        for part in ("tokens", "boxes"):
            assert (observation[f"wrist/{part}"] != observation[f"scene/{part}"]).any()

    def test_tokens_are_repeated_between_looks(self, env: ManipulationEnv, source: str) -> None:
        wrapper = wrapped(env, source=source, frame_interval=3)
        seen = [wrapper.reset(seed=0)[0]]
        seen += [wrapper.step(np.array([0.5, 0, -1, 0, 1]))[0] for _ in range(7)]
        looks = [next(i for i in range(8) if (seen[i]["wrist/tokens"] == s["wrist/tokens"]).all()) for s in seen]
        boxes = [next(i for i in range(8) if (seen[i]["wrist/boxes"] == s["wrist/boxes"]).all()) for s in seen]
        assert looks == boxes == [0, 0, 0, 3, 3, 3, 6, 6]
        assert (seen[0]["proprio"] != seen[1]["proprio"]).any()

    def test_the_last_observation_shows_the_last_moment(self, env: ManipulationEnv, source: str) -> None:
        """Value estimates at truncation are read from it."""
        wrapper = wrapped(env, source=source)
        wrapper.reset(seed=0)
        over = False
        while not over:
            boxes = wrapper.origins["wrist"]
            *_, terminated, truncated, _ = wrapper.step(np.zeros(5))
            over = terminated or truncated
        assert (wrapper.origins["wrist"] != boxes).any()

    def test_render_stays_a_plain_picture(self, env: ManipulationEnv, source: str) -> None:
        env.reset(seed=0)
        plain = env.render()
        wrapper = wrapped(env, cameras=CAMERAS, source=source)
        first, _ = wrapper.reset(seed=0)
        picture = wrapper.render()
        assert (picture.shape, picture.dtype) == ((360, 480, 3), np.uint8)
        assert (picture == plain).all()
        again, _ = wrapped(env, cameras=CAMERAS, source=source).reset(seed=0)
        assert (again["scene/tokens"] == first["scene/tokens"]).all()

    def test_jitter_without_a_generator_follows_the_seed(self, env: ManipulationEnv, source: str) -> None:
        wrapper = MultiResolutionTokens(env, {"wrist": SMALL}, source=source)
        one, other, again = (wrapper.reset(seed=seed)[0]["wrist/boxes"] for seed in (1, 2, 1))
        assert (one == again).all()
        assert (one != other).any()


class TestFrameHook:
    def test_it_changes_the_frame_before_the_cut(self, env: ManipulationEnv) -> None:
        calls = []

        def paint_a_corner(frames: dict, observation: Observation) -> dict:
            calls.append((frames["wrist"].shape, frames["wrist"].dtype, sorted(observation)))
            changed = frames["wrist"].copy()
            changed[:32, :32] = 7
            return frames | {"wrist": changed}

        still = Pyramid(frame_size=128, patch=8, grids=(4, 4, 4))
        plain, _ = wrapped(env, still, source="sensor").reset(seed=0)
        hooked, _ = wrapped(env, still, source="sensor", frame_hook=paint_a_corner).reset(seed=0)
        assert calls == [((128, 128, 3), np.uint8, ["instruction", "proprio", "wrist/origins"])]
        tokens, boxes = hooked["wrist/tokens"], hooked["wrist/boxes"]
        corner = (boxes[:, :2] + boxes[:, 2:3] <= -0.5).all(axis=1)
        assert corner.sum() == 1
        assert (tokens[corner] == 7).all()
        assert (tokens[~corner] == plain["wrist/tokens"][~corner]).all()

    def test_it_needs_the_sensor(self, env: ManipulationEnv) -> None:
        with pytest.raises(UserError, match=r"frame_hook.*source='sensor'"):
            wrapped(env, source="nested", frame_hook=lambda frames, observation: frames)


class TestRefusals:
    def test_an_unknown_camera_suggests_the_nearest(self, env: ManipulationEnv) -> None:
        with pytest.raises(UserError, match=r"camera 'wirst'.*'wrist'\?.*Known: scene, wrist"):
            wrapped(env, cameras=("wirst",))

    def test_an_unknown_source_suggests_the_nearest(self, env: ManipulationEnv) -> None:
        with pytest.raises(UserError, match=r"source 'senser'.*'sensor'\?"):
            wrapped(env, source="senser")

    def test_an_interval_below_one(self, env: ManipulationEnv) -> None:
        with pytest.raises(UserError, match="frame_interval must be at least 1, not 0"):
            wrapped(env, frame_interval=0)
