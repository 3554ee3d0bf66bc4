"""Shifts change what they say, on the same initial states, and nothing at severity 0."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrvlm_sim.agents.baselines import RandomPolicy
from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition, conditions_of
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.replay import replay
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import Key
from mrvlm_sim.evaluation.tables import by_condition, pretty_tables
from mrvlm_sim.sim.card import environment_cards
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import decode_instruction
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.tasks.tabletop import COLOURS
from mrvlm_sim.vision import Jitter, Pyramid
from mrvlm_sim.wrappers.shifts import CHANGED, SHIFTS, check_shift, under

EYES = {"wrist": Pyramid(frame_size=64, patch=8, grids=(4, 4), jitter=Jitter(tremor=0.2))}
OF_PICTURES = [name for name in SHIFTS if name not in ("delay", "phrases")]

OWN = [name for name in environment_cards() if "/" not in name]


class Looks(RandomPolicy):
    """Acts at random, and keeps what it saw."""

    requirements = Requirements(cameras=EYES)

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        super().reset(episodes)
        self.seen: list[np.ndarray] = []

    def act(self, observations: Observations) -> np.ndarray:
        self.seen.append(observations["wrist/tokens"].copy())
        return super().act(observations)


def play(env: ManipulationEnv, shift: str | None, severity: float = 1.0) -> tuple[EpisodeRecord, np.ndarray]:
    policy = Looks()
    condition = Condition("x", "sensor", shift=shift, severity=severity if shift else 0.0)
    record = run_episode(env, "pick_place", policy, "p", condition, 0, 0)
    assert record.error == ""
    return record, np.concatenate(policy.seen)


@pytest.mark.parametrize("name", SHIFTS)
def test_severity_nought_is_the_clean_episode(brief_env: ManipulationEnv, name: str) -> None:
    (clean, seen), (shifted, seen_too) = play(brief_env, None), play(brief_env, name, 0.0)
    assert (shifted.end_hash, shifted.frame_hash) == (clean.end_hash, clean.frame_hash)
    assert (seen == seen_too).all()


@pytest.mark.parametrize("name", OF_PICTURES)
def test_pictures_change_and_physics_does_not(brief_env: ManipulationEnv, name: str) -> None:
    (clean, seen), (shifted, other) = play(brief_env, None), play(brief_env, name)
    assert (shifted.start_hash, shifted.end_hash) == (clean.start_hash, clean.end_hash)
    assert all((one != two).mean() > 0.005 for one, two in zip(seen, other, strict=True))  # from the first look on


@pytest.mark.parametrize("name", OF_PICTURES)
def test_more_severe_is_farther_from_clean(brief_env: ManipulationEnv, name: str) -> None:
    _, clean = play(brief_env, None)
    away = [np.abs(play(brief_env, name, severity)[1].astype(float) - clean).mean() for severity in (0.2, 1.0)]
    assert away[0] < away[1]


@pytest.mark.parametrize("name", SHIFTS)
def test_it_repeats_and_leaves_the_model_as_it_was(brief_env: ManipulationEnv, name: str) -> None:
    before = {part: getattr(brief_env.model, part).copy() for part in CHANGED}
    headlight = brief_env.model.vis.headlight.diffuse.copy()
    (one, seen), (again, seen_again) = play(brief_env, name), play(brief_env, name)
    assert (one.end_hash, one.frame_hash) == (again.end_hash, again.frame_hash)
    assert (seen == seen_again).all()
    for part in set(CHANGED) - {"geom_rgba"}:
        assert (getattr(brief_env.model, part) == before[part]).all()
    assert (brief_env.model.vis.headlight.diffuse == headlight).all()
    _, clean = play(brief_env, None)
    assert (clean != seen).any() or name not in OF_PICTURES
    assert brief_env.renderer.decor == []


def test_other_words_say_the_same(brief_env: ManipulationEnv) -> None:
    """As often as the severity says, in words that demonstrations never use, about the same things."""
    said = {0.5: 0, 1.0: 0}
    for severity in said:
        for seed in range(40):
            shift = SHIFTS["phrases"](severity, np.random.default_rng(seed))
            _, plain = brief_env.reset(seed=seed)
            words = brief_env.task.words
            with under(brief_env, shift) as begun:
                observation, info = begun.reset(seed=seed)
            unseen = info["instruction"] in {phrase.format(**words) for phrase in brief_env.task.phrases.unseen}
            assert unseen or info["instruction"] == plain["instruction"]
            assert decode_instruction(observation["instruction"]) == info["instruction"] == brief_env.instruction
            said[severity] += unseen
    assert said[1.0] == 40
    assert 8 < said[0.5] < 32


@pytest.mark.parametrize("name", OWN)
def test_every_own_task_bears_every_shift(name: str) -> None:
    with closing(make_own_env(f"{name}[max_steps=2]")) as env:
        for shift in SHIFTS:
            condition = Condition(shift, "sensor", shift=shift, severity=1.0)
            record = run_episode(env, name, Looks(), "p", condition, 0, 1)
            assert record.error == ""
            assert env.renderer.decor == []


@pytest.mark.parametrize("name", OWN)
def test_more_things_hide_nothing_that_is_there_or_will_be(name: str) -> None:
    with closing(make_own_env(name)) as env:
        for seed in range(4):
            env.reset(seed=seed)
            things = SHIFTS["distractors"](1.0, np.random.default_rng(seed)).decor(env)
            assert len(things) >= 2
            places = np.array([thing.place[:2] for thing in things])
            landmarks = env.task.landmarks(env.scene)[:, :2] + env.scene.fingertips()[:2]
            there = np.concatenate([landmarks[np.isfinite(landmarks[:, 0])], env.task.paths()[:, :2], places])
            apart = np.linalg.norm(places[:, None] - there, axis=-1)
            assert np.sort(apart, axis=1)[:, 1].min() > 0.03  # the nearest is itself
            for thing in things:
                assert all(np.abs(np.subtract(thing.colour, known)).max() > 0.2 for known in COLOURS.values())


@pytest.mark.parametrize("name", OWN)
def test_textures_move_with_what_they_are_on(name: str) -> None:
    """Wherever things are put, their patterns are drawn on them; marks, which must be read, get none."""
    with closing(make_own_env(name)) as env, under(env, SHIFTS["texture"](1.0, np.random.default_rng(0))) as begun:
        begun.reset(seed=0)
        patterns = [thing for thing in env.renderer.decor if thing.on is not None]
        env.scene.data.geom_xpos[:] += np.array([0.0, 0.1, 0.0])
        env.scene.data.geom_xmat[:] = [0, -1, 0, 1, 0, 0, 0, 0, 1]
        env.renderer.frame("scene", 32)
        drawn = env.renderer._scene.geoms[env.renderer._scene.ngeom - len(patterns) : env.renderer._scene.ngeom]
        for thing, geom in zip(patterns, drawn, strict=True):
            assert env.model.geom_matid[thing.on] < 0
            x, y, z = thing.place
            away = geom.pos - env.scene.data.geom_xpos[thing.on]
            np.testing.assert_allclose(away, [-y, x, z], atol=1e-6)
            assert np.linalg.norm(away) < env.model.geom_rbound[thing.on]
            np.testing.assert_allclose(geom.mat, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)
        assert bool(patterns) == (name != "read_mark")


def test_another_packages_environment_has_no_table_to_cover() -> None:
    conditions = tuple(conditions_of([], 0.0, 1, [("texture", 1.0)]))
    with pytest.raises(UserError, match="is made by metaworld; this takes an environment of this suite's own"):
        Plan("metaworld/reach-v3", ("random",), conditions, 0, 1)


def test_a_late_action_is_the_one_of_some_steps_before(brief_env: ManipulationEnv) -> None:
    taken: list[np.ndarray] = []
    step = brief_env.step
    shift = SHIFTS["delay"](0.5, np.random.default_rng(0))
    with under(brief_env, shift) as begun, pytest.MonkeyPatch.context() as patch:
        patch.setattr(brief_env, "step", lambda action: taken.append(action) or step(action))
        begun.reset(seed=0)
        for i in range(5):
            begun.step(np.full(5, i / 10, np.float32))
    assert [round(float(action[0]), 1) for action in taken] == [0.0, 0.0, 0.0, 0.1, 0.2]


def test_a_delayed_episode_can_be_replayed(tmp_path: Path) -> None:
    conditions = conditions_of([], 0.0, 1, [("delay", 1.0), ("lighting", 0.5)])
    plan = Plan("pick_place[max_steps=12]", ("random",), tuple(conditions), 0, 1)
    evaluation = Evaluation(plan, tmp_path / "run", workers=0)
    evaluation.run(lambda _: None)
    evaluation.finish()
    for name in ("clean", "delay 1", "lighting 0.5"):
        assert replay(tmp_path / "run", Key("random", name, 0, 0)).differences == ()


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [("ligting", 0.5, "Did you mean 'lighting'"), ("blur", 1.1, "between 0 and 1"), ("blur", -0.1, "between 0 and 1")],
)
def test_what_is_no_shift_is_refused(name: str, severity: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_shift(name, severity)
    with pytest.raises(UserError, match=message):
        conditions_of([], 0.0, 1, [(name, severity)])


def test_shifts_of_frames_need_frames() -> None:
    with pytest.raises(UserError, match="its source is 'sensor'"):
        Condition("x", shift="noise", severity=0.5)
    sources: Any = {c.source for c in conditions_of([], 0.0, 1, [("noise", 0.5), ("lighting", 0.5)])}
    assert sources == {"sensor"}  # the clean twins, too
    assert {c.source for c in conditions_of([], 0.0, 1, [("lighting", 0.5)])} == {"nested"}


def test_many_conditions_are_a_table_of_lines(tmp_path: Path) -> None:
    conditions = conditions_of([], 0.0, 1, [(name, 1.0) for name in ("lighting", "colours", "camera")])
    plan = Plan("pick_place[max_steps=4]", ("random", "noop"), tuple(conditions), 0, 2)
    evaluation = Evaluation(plan, tmp_path / "run", workers=0)
    evaluation.run(lambda _: None)
    table = evaluation.finish()
    assert len(pretty_tables(table)) == 2
    lines = by_condition(table)
    assert lines["condition"].tolist() == [c for c in ("clean", "lighting 1", "colours 1", "camera 1") for _ in "ab"]
    assert lines["drop"].tolist()[:3] == ["-", "-", "+0.0 [-65.8, +65.8]"]
    assert "lighting 1" in (tmp_path / "run" / "table.md").read_text()


class TestCorruptions:
    FRAME = np.random.default_rng(0).integers(60, 190, (64, 64, 3)).astype(np.uint8)

    def changed(self, name: str, severity: float, seed: int = 0) -> np.ndarray:
        shift = SHIFTS[name](severity, np.random.default_rng(seed))
        return shift.frames({"wrist": self.FRAME.copy()}, {})["wrist"]

    @pytest.mark.parametrize("name", [name for name, shift in SHIFTS.items() if shift.of_frames])
    def test_more_is_worse_and_the_seed_says_how(self, name: str) -> None:
        errors = [
            np.abs(self.changed(name, severity) - self.FRAME.astype(float)).mean() for severity in (0, 0.2, 0.6, 1)
        ]
        assert errors[0] == 0
        assert errors == sorted(errors)
        assert errors[-1] > errors[1]
        assert self.changed(name, 1.0).dtype == np.uint8
        assert (self.changed(name, 1.0) == self.changed(name, 1.0)).all()

    def test_brightness_goes_up_or_down(self) -> None:
        signs = {np.sign(self.changed("brightness", 0.4, seed).mean() - self.FRAME.mean()) for seed in range(8)}
        assert signs == {-1, 1}

    def test_dirt_covers_up_to_a_quarter_and_stays_where_it_is(self) -> None:
        shift = SHIFTS["occlusion"](1.0, np.random.default_rng(3))
        first, second = (shift.frames({"wrist": self.FRAME}, {})["wrist"] for _ in range(2))
        assert (first == second).all()
        shares = [(self.changed("occlusion", 1.0, seed) != self.FRAME).any(axis=2).mean() for seed in range(40)]
        assert 0.15 < max(shares) <= 0.26

    def test_a_compressed_frame_costs_detail_and_not_its_colour(self) -> None:
        worst = self.changed("compression", 1.0)
        assert np.std(worst) < np.std(self.FRAME)
        assert abs(worst.mean() - self.FRAME.mean()) < 3
