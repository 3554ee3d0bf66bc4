"""Reading marks: what the wrist camera sees at the start is exact, and only the first plate touched counts."""

from collections.abc import Iterator
from functools import cache

import imageio.v3 as imageio
import numpy as np
import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.paths import cards_in
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import get_state, set_state
from mrvlm_sim.tasks import make_own_env, with_settings
from mrvlm_sim.tasks.optotypes import CANVAS_SHARE, MARKS, PIXELS, picture
from mrvlm_sim.tasks.read_mark import DISTANCE, PHRASES, PLATES

STAY = np.zeros(5)
FRAME = 1024


@pytest.fixture(scope="module")
def env() -> Iterator[ManipulationEnv]:
    made = make_own_env("read_mark")
    yield made
    made.close()


def with_knobs(**knobs: object) -> ManipulationEnv:
    settings = [f"read_mark.{knob}={str(value).lower()}" for knob, value in knobs.items()]
    return make_own_env(with_settings("read_mark", settings))


def bearers(env: ManipulationEnv) -> dict[str, str]:
    """Which plate bears which mark, by the landmarks."""
    rows = env.task.landmarks(env.scene)[2:] + env.scene.fingertips()
    places = {plate: env.scene.position(plate) for plate in PLATES}
    return {
        mark: min(places, key=lambda plate: float(np.linalg.norm(places[plate] - row)))
        for mark, row in zip(MARKS, rows, strict=True)
        if np.isfinite(row).all()
    }


def named_mark(env: ManipulationEnv) -> str:
    (mark,) = set(env.instruction.split()) & set(MARKS)
    return mark


def plates(env: ManipulationEnv) -> tuple[str, list[str]]:
    """The named plate, and the others from left to right."""
    named = bearers(env)[named_mark(env)]
    return named, [plate for plate in PLATES if plate != named]


def put_fingertips(env: ManipulationEnv, place: np.ndarray) -> None:
    env.scene.arm.reset(env.data, place)
    env.data.qvel[:] = 0
    env.scene.forward()


def touch(env: ManipulationEnv, plate: str, steps: int) -> tuple[bool, float]:
    """Success and reward after some steps with the fingertips at a plate."""
    put_fingertips(env, env.scene.position(plate))
    for _ in range(steps):
        _, reward, success, _, _ = env.step(STAY)
    return success, reward


def in_camera(env: ManipulationEnv, point: np.ndarray) -> np.ndarray:
    """Points (..., 3) in metres to the right of, above and before the wrist camera's centre."""
    camera = env.data.camera("wrist")
    return (point - camera.xpos) @ camera.xmat.reshape(3, 3) * [1, 1, -1]


def angle(one: np.ndarray, other: np.ndarray) -> float:
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def on_plate(env: ManipulationEnv, plate: str, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    """Points (..., 3) in the world on a plate's surface, x to the right and y up, metres from its middle."""
    rotation = env.data.body(plate).xmat.reshape(3, 3)
    return env.scene.position(plate) + np.multiply.outer(x, rotation[:, 0]) + np.multiply.outer(y, rotation[:, 1])


def seen(env: ManipulationEnv, plate: str, frame: np.ndarray) -> np.ndarray:
    """What a frame shows where a plate's picture is, float (32, 32), 0 black to 255 white."""
    half = CANVAS_SHARE * DISTANCE * np.tan(np.radians(env.task.parameters.mark_size) / 2)
    grid = (np.arange(32) + 0.5) / 16 - 1
    points = on_plate(env, plate, *np.meshgrid(half * grid, -half * grid))
    right, up, forward = np.moveaxis(in_camera(env, points), -1, 0)
    scale = FRAME / 2 / np.tan(np.radians(env.model.camera("wrist").fovy[0]) / 2)
    rows, columns = FRAME / 2 - scale * up / forward, FRAME / 2 + scale * right / forward
    return frame.mean(axis=2)[rows.astype(int), columns.astype(int)]


drawn = cache(picture)


@cache
def small_picture(mark: str) -> np.ndarray:
    return drawn(mark).reshape(32, 8, 32, 8).mean((1, 3))


def read(env: ManipulationEnv, plate: str, frame: np.ndarray) -> str:
    """The mark that a frame shows on a plate."""
    looks = seen(env, plate, frame)
    return min(MARKS, key=lambda mark: float(np.abs(small_picture(mark) - looks).mean()))


class TestOptics:
    @pytest.mark.parametrize(("mark_size", "eccentricity"), [(0.5, 10), (3.8, 10), (3, 12), (7, 20), (10, 33), (7, 45)])
    def test_sizes_and_places_are_what_the_knobs_say(self, mark_size: float, eccentricity: float) -> None:
        env = with_knobs(mark_size=mark_size, eccentricity=eccentricity)
        half_field = np.tan(np.radians(env.model.camera("wrist").fovy[0]) / 2)
        for seed in range(5):
            env.reset(seed=seed)
            for i, plate in enumerate(PLATES):
                centre = in_camera(env, env.scene.position(plate))
                assert angle(centre, np.array([0, 0, 1])) == pytest.approx(eccentricity, abs=1e-4)
                picture_half, paper_half = (env.model.geom(f"{part}{i}").size[1] for part in ("mark", "paper"))
                half = picture_half / CANVAS_SHARE
                lower, upper = (in_camera(env, on_plate(env, plate, 0.0, y)) for y in (-half, half))
                assert angle(lower, upper) == pytest.approx(mark_size, rel=1e-5)
                left, right = (in_camera(env, on_plate(env, plate, x, 0.0)) for x in (-half, half))
                assert angle(left, right) == pytest.approx(mark_size, rel=1e-5)
                for x, y in [(-1, -1), (-1, 1), (1, -1), (1, 1)]:
                    corner = in_camera(env, on_plate(env, plate, x * paper_half, y * paper_half))
                    assert np.abs(corner[:2] / corner[2]).max() < half_field

    @pytest.mark.parametrize(("mark_size", "eccentricity"), [(3.8, 10), (10, 30), (10, 40), (7, 45)])
    def test_the_picture_shows_the_marks_unhidden(self, mark_size: float, eccentricity: float) -> None:
        env = with_knobs(mark_size=mark_size, eccentricity=eccentricity)
        for seed in range(3):
            env.reset(seed=seed)
            frame = env.renderer.frame("wrist", FRAME)
            for mark, plate in bearers(env).items():
                assert read(env, plate, frame) == mark
                looks = seen(env, plate, frame)
                assert looks.max() == 255
                assert looks.min() == 0
                rim = np.concatenate([looks[0], looks[-1], looks[:, 0], looks[:, -1]])
                assert rim.min() > 200, "the paper around a mark is white: nothing stands before it"
        env.close()

    def test_plates_look_alike_but_for_the_marks(self, env: ManipulationEnv) -> None:
        env.reset(seed=0)
        for kind in ("paper", "mark"):
            geoms = [env.model.geom(f"{kind}{i}") for i in range(4)]
            assert len({(*geom.size, *geom.rgba) for geom in geoms}) == 1

    def test_a_renderer_made_before_shows_the_marks_drawn_since(self, env: ManipulationEnv) -> None:
        shown = set()
        for seed in range(8):
            env.reset(seed=seed)
            frame = env.renderer.frame("wrist", FRAME)
            assert {mark: read(env, plate, frame) for mark, plate in bearers(env).items()} == {
                mark: mark for mark in bearers(env)
            }
            shown |= bearers(env).keys()
        assert shown == set(MARKS)

    def test_marks_can_be_seen_for_a_while_only(self) -> None:
        env = with_knobs(shown_steps=2)
        env.reset(seed=0)
        for observation in range(5):
            shown = [seen(env, plate, env.renderer.frame("wrist", FRAME)).min() < 100 for plate in PLATES]
            assert shown == [observation < 2] * 4
            if observation == 3:
                frame, state = env.renderer.frame("wrist", 64), get_state(env.model, env.data)
            env.step(np.array([0, 0, 0.2, 0, -1]))
        env.reset(seed=0)
        assert (env.renderer.frame("wrist", 64) != frame).any()
        set_state(env.model, env.data, state)
        env.scene.forward()
        assert (env.renderer.frame("wrist", 64) == frame).all()
        env.close()


class TestMarks:
    def test_the_files_are_the_drawings(self) -> None:
        folder = cards_in("envs", "env.toml")["read_mark"].parent
        for mark in MARKS:
            assert np.abs(imageio.imread(folder / f"{mark}.png").astype(int) - drawn(mark)).max() <= 1

    def test_all_are_equally_high_and_black(self) -> None:
        for mark in MARKS:
            ink = 1 - drawn(mark) / 255
            rows, columns = np.flatnonzero(ink.max(axis=1) > 0.5), np.flatnonzero(ink.max(axis=0) > 0.5)
            assert CANVAS_SHARE * (rows[-1] - rows[0] + 1) / PIXELS == pytest.approx(1)
            assert rows[0] + rows[-1] == PIXELS - 1, "in the middle"
            assert columns[0] > PIXELS / 16, "with white all around"
            assert columns[-1] < PIXELS * 15 / 16
            share = CANVAS_SHARE**2 * ink.mean()
            assert share == pytest.approx(4 * np.pi / 25, rel=0.002)  # of a ring of height 5 and stroke 1, in its box

    def test_named_marks_and_places_occur_equally_often(self, env: ManipulationEnv) -> None:
        draws = 240
        named = []
        for seed in range(draws):
            env.reset(seed=seed)
            assert not env.solved()
            assert len(set(bearers(env).values())) == 4
            named.append((named_mark(env), bearers(env)[named_mark(env)]))
        for choices, part in ((MARKS, 0), (PLATES, 1)):
            counts = [sum(draw[part] == choice for draw in named) for choice in choices]
            expected = draws / len(choices)
            assert np.abs(np.array(counts) - expected).max() < 4 * np.sqrt(expected)

    def test_a_choice_of_marks_is_kept_to(self) -> None:
        chosen = ["star", "two", "five", "cross"]
        env = with_knobs(marks=chosen)
        for seed in range(4):
            env.reset(seed=seed)
            assert set(bearers(env)) == set(chosen)

    def test_unseen_phrases_are_others(self, env: ManipulationEnv) -> None:
        unseen = with_knobs(unseen_phrases=True)
        for made, phrases in ((env, PHRASES.seen), (unseen, PHRASES.unseen)):
            said = set()
            for seed in range(40):
                made.reset(seed=seed)
                said.add(made.instruction.replace(named_mark(made), "{thing}"))
            assert said == set(phrases)

    def test_relabelling_names_another_mark_that_is_there(self, env: ManipulationEnv) -> None:
        before = []
        for seed in range(30):
            env.reset(seed=seed)
            before.append(env.task.landmarks(env.scene))
            assert (before[-1][0] == before[-1][2 + MARKS.index(named_mark(env))]).all()
            assert np.isnan(before[-1][1]).all()
        texts, after = env.task.relabel(np.array(before), np.random.default_rng(0))
        assert np.array_equal(after[:, 1:], np.array(before)[:, 1:], equal_nan=True)
        for text, rows in zip(texts, after, strict=True):
            (mark,) = set(text.split()) & set(MARKS)
            assert (rows[0] == rows[2 + MARKS.index(mark)]).all()
        assert len({mark for text in texts for mark in MARKS if mark in text.split()}) > 4


class TestTouching:
    @pytest.mark.parametrize("seed", range(4))
    def test_touching_the_named_plate_long_enough_is_success(self, env: ManipulationEnv, seed: int) -> None:
        env.reset(seed=seed)
        hold = env.card.hold_steps
        assert touch(env, plates(env)[0], hold - 1) == (False, 0.0)
        assert env.step(STAY)[2]

    def test_a_wrong_touch_ends_the_chance(self) -> None:
        env = with_knobs(reward="dense")
        env.reset(seed=0)
        named, others = plates(env)
        for plate in others:
            env.reset(seed=0)
            hold = env.card.hold_steps
            touch(env, plate, 1)
            assert touch(env, named, 2 * hold) == (False, -1.0)
            env.reset(seed=0)
            success, reward = touch(env, named, hold)
            assert success
            assert reward == 0.0

    def test_near_is_not_touching(self) -> None:
        env = with_knobs(tolerance=0.01)
        env.reset(seed=0)
        named, others = plates(env)
        put_fingertips(env, env.scene.position(named) + np.array([0, 0, 0.014]))
        assert not env.solved()
        put_fingertips(env, env.scene.position(others[0]) + np.array([0, 0, 0.014]))
        env.step(STAY)
        put_fingertips(env, env.scene.position(named) + np.array([0, 0, 0.006]))
        assert env.solved()

    def test_a_wrong_touch_is_part_of_the_state(self, env: ManipulationEnv) -> None:
        env.reset(seed=0)
        named, others = plates(env)
        touch(env, others[0], 2)
        touch(env, named, 1)
        state = get_state(env.model, env.data)
        env.reset(seed=0)
        touch(env, named, 1)
        assert env.solved()
        set_state(env.model, env.data, state)
        env.scene.forward()
        assert not env.solved()
        env.reset(seed=0)
        assert env.data.userdata[0] == 0

    def test_trying_one_after_another_is_no_better_than_the_first_guess(self, env: ManipulationEnv) -> None:
        successes, first_was_named = [], []
        for seed in range(24):
            env.reset(seed=seed)
            first_was_named.append(plates(env)[0] == PLATES[0])
            successes.append(any(touch(env, plate, env.card.hold_steps)[0] for plate in PLATES))
        assert successes == first_was_named

    @pytest.mark.parametrize("eccentricity", [10, 12, 45])
    def test_the_expert_reads_and_touches(self, eccentricity: float) -> None:
        env = with_knobs(eccentricity=eccentricity, tolerance=0.01)
        for seed in range(14):
            env.reset(seed=seed)
            over = False
            while not over:
                _, _, success, truncated, _ = env.step(env.expert_action())
                over = success or truncated
            assert success


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mark_size=0.05", "greater than or equal to 0.1"),
        ("mark_size=8", "at an eccentricity of 12 degrees mark_size must be at most 4.5"),
        ("eccentricity=5", "greater than or equal to 10"),
        ("eccentricity=50", "less than or equal to 45"),
        ("tolerance=0.05", "tolerance must be at most 0.03"),
        ("tolerance=0", "greater than 0"),
        ('marks=["star", "two", "five"]', "at least 4"),
        ('marks=["star", "two", "five", "crss"]', "Did you mean 'cross'"),
        ('marks=["star", "two", "five", "star"]', "only once"),
        ("shown_steps=-1", "greater than or equal to 0"),
        ("start_noise=0.1", "less than or equal to 0.02"),
        ("marksize=2", "Did you mean 'mark_size'"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_own_env(with_settings("read_mark", [f"read_mark.{setting}"]))
