"""Attacks stay within their bound, do more than noise, and change nothing but what the policy sees."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import BRIEF_STEPS
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import PYRAMID

from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements
from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.metrics import attacks
from mrvlm_sim.metrics.attacks import Attack, DifferentiablePolicy, Threat, Victim, make_mask
from mrvlm_sim.metrics.attacks.gradient import PGD
from mrvlm_sim.metrics.attacks.search import Noise
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.wrappers.tokens import Frames

PYRAMIDS = {"wrist": PYRAMID}
SIZE = PYRAMID.frame_size
CLEAN = Condition("clean", "sensor")


@pytest.fixture(scope="module")
def seen(env: ManipulationEnv) -> list[tuple[Frames, Observation]]:
    """The first frames of a few episodes."""
    views = []
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        views.append(({"wrist": env.renderer.frame("wrist", SIZE)}, observation))
    return views


def make(
    kind: type[Attack], eps: float, policy: object = None, steps: int = 5, pyramids: Mapping = PYRAMIDS, seed: int = 0
) -> Attack:
    return kind(Threat(eps, steps), Victim(policy, pyramids), np.random.default_rng(seed))


def change(attacked: Frames, clean: Frames) -> np.ndarray:
    assert attacked.keys() == clean.keys()
    for camera in clean:
        assert attacked[camera].dtype == np.uint8
        assert attacked[camera].shape == clean[camera].shape
    return np.concatenate([attacked[c].astype(int) - clean[c] for c in clean])


class TestBounds:
    @given(st.floats(1 / 255, 16 / 255), st.integers(0, 2**32 - 1), st.sampled_from(["any", "black", "white"]))
    def test_noise(self, eps: float, seed: int, kind: str) -> None:
        rng = np.random.default_rng(seed)
        full = {
            "any": rng.integers(0, 256, (16, 16, 3)),
            "black": np.zeros((16, 16, 3)),
            "white": np.full((16, 16, 3), 255),
        }
        frames = {"wrist": full[kind].astype(np.uint8)}
        untouched = frames["wrist"].copy()
        attack = make(Noise, eps, seed=seed)
        largest = np.abs(change(attack(frames, {}), frames)).max()
        assert largest <= eps * 255 + 1e-6
        assert largest == attack.largest == int(eps * 255 + 1e-6)
        assert (frames["wrist"] == untouched).all()

    @pytest.mark.parametrize("values", [1, 4, 7.9])
    def test_pgd(self, values: float, tiny: TrainedPolicy, seen: list) -> None:
        for frames, observation in seen[:2]:
            attack = make(PGD, values / 255, tiny)
            moved = np.abs(change(attack(frames, observation), frames))
            assert moved.max() == attack.largest == int(values)
            assert moved.mean() > 0.3 * int(values), "it uses its bound"

    @settings(max_examples=40)
    @given(st.floats(-0.1, 0.1), st.integers(1, 16), st.sampled_from(["frame", "patch@0,0"]))
    def test_an_attack_that_goes_too_far_is_refused(self, shove: float, values: int, region: str) -> None:
        class Shove(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                return {camera: frame / 255 + shove for camera, frame in frames.items()}

        frames = {"wrist": np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)}
        attack = make(Shove, values / 255)
        attack.mask = make_mask(region)
        assume(abs(abs(shove) * 255 % 1 - 0.5) > 1e-6)  # not half a sensor value, which may be rounded either way
        proposed = round(abs(shove) * 255)
        if proposed > values:
            with pytest.raises(
                ValueError, match=rf"Shove proposed a change of {proposed}/255, the bound is {values}/255"
            ):
                attack(frames, {})
            return
        moved = change(attack(frames, {}), frames)
        assert np.abs(moved).max() == attack.largest == proposed

    def test_half_a_sensor_value_goes_to_the_even_one(self) -> None:
        """Whatever the change: outcomes of attacks hang on it."""

        class Half(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                return {camera: (frame + 0.5) / 255 for camera, frame in frames.items()}

        frames = {"wrist": np.tile(np.array([10, 11], np.uint8), (4, 2))[..., None].repeat(3, axis=-1)}
        moved = change(make(Half, 2 / 255)(frames, {}), frames)
        assert (moved[:, 0::2] == 0).all()
        assert (moved[:, 1::2] == 1).all()

    def test_what_lies_outside_of_a_region_is_left_alone(self) -> None:
        class Everywhere(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                return {camera: np.ones(frame.shape) for camera, frame in frames.items()}

        frames = {"wrist": np.full((16, 16, 3), 128, np.uint8)}
        attack = make(Everywhere, 1.0)
        attack.mask = make_mask("patch@0,0")
        assert (change(attack(frames, {}), frames) != 0).all(axis=-1).mean() == pytest.approx(0.05, abs=0.02)

    def test_the_largest_change_of_all_frames_is_remembered(self) -> None:
        class Once(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                shove = 0 if self.largest else 3 / 255
                return {camera: frame / 255 + shove for camera, frame in frames.items()}

        attack, frames = make(Once, 4 / 255), {"wrist": np.full((4, 4, 3), 128, np.uint8)}
        assert [np.abs(change(attack(frames, {}), frames)).max() for _ in range(2)] == [3, 0]
        assert attack.largest == 3


class TestRefusals:
    @pytest.mark.parametrize("eps", [-1 / 255, 0.0, 1.01, 4.0, float("nan"), float("inf")])
    @pytest.mark.parametrize("name", attacks.ATTACKS)
    def test_sizes_out_of_range(self, name: str, eps: float) -> None:
        with pytest.raises(UserError, match=r"--eps must lie in \(0, 1\]") as error:
            Condition(name, "sensor", name, eps)
        assert f"{eps:g}" in str(error.value)
        with pytest.raises(UserError, match="--eps"):
            make(attacks.ATTACKS[name], eps)

    @pytest.mark.parametrize("eps", [1e-9, 1 / 256, 0.99 / 255])
    def test_sizes_below_one_value_of_the_sensor(self, eps: float) -> None:
        with pytest.raises(UserError, match=r"below 1/255 = 0\.00392"):
            Condition("noise", "sensor", "noise", eps)

    @pytest.mark.parametrize("eps", [1 / 255, 1.0])
    def test_the_edges_are_allowed(self, eps: float) -> None:
        Condition("noise", "sensor", "noise", eps)

    def test_no_steps(self, tiny: TrainedPolicy) -> None:
        with pytest.raises(UserError, match="--steps must be at least 1, not 0"):
            make(PGD, 4 / 255, tiny, steps=0)

    def test_no_steps_before_the_first_episode(self) -> None:
        with pytest.raises(UserError, match="--steps must be at least 1, not 0"):
            Condition("pgd", "sensor", "pgd", 4 / 255, 0)

    def test_an_unknown_attack(self) -> None:
        with pytest.raises(UserError, match=r"unknown attack 'pdg'\. Did you mean 'pgd'\? Known: .*noise, paint, pgd"):
            Condition("pdg", "sensor", "pdg", 4 / 255)


class Watching:
    """Sees, but gives no gradients."""

    requirements = Requirements(PYRAMIDS)

    def reset(self, episodes: list[EpisodeStart]) -> None:
        self.batch = len(episodes)

    def act(self, observations: Observations) -> np.ndarray:
        return np.zeros((self.batch, 5))


class TestWhatAnAttackAppliesTo:
    def test_white_boxes_need_gradients(self, tiny: TrainedPolicy) -> None:
        pgd = Condition("pgd", "sensor", "pgd", 4 / 255)
        assert isinstance(tiny, DifferentiablePolicy)
        assert pgd.applies_to(tiny)
        assert not pgd.applies_to(Watching())
        assert not pgd.applies_to(load_policy("random"))

    def test_noise_needs_eyes(self, tiny: TrainedPolicy) -> None:
        noise = Condition("noise", "sensor", "noise", 4 / 255)
        assert noise.applies_to(tiny)
        assert noise.applies_to(Watching())
        assert not noise.applies_to(load_policy("expert"))

    def test_clean_applies_to_all(self, tiny: TrainedPolicy) -> None:
        assert all(CLEAN.applies_to(policy) for policy in (tiny, Watching(), load_policy("noop")))


@torch.no_grad()
def deviation(policy: TrainedPolicy, attacked: Frames, clean: Frames, observation: Observation) -> float:
    """Of the action chunk from its clean twin under the same jitters."""
    jitters = PYRAMID.place(PYRAMID.jitter.stationary(np.random.default_rng(9), (8, PYRAMID.levels, 2)))

    def chunks(frames: Frames) -> torch.Tensor:
        scaled = {camera: torch.from_numpy(frame.astype(np.float32) / 255) for camera, frame in frames.items()}
        return policy.action_chunks(scaled, {"wrist": jitters}, observation)

    return float((chunks(attacked) - chunks(clean)).square().mean())


class TestStrength:
    def test_pgd_does_more_than_noise(self, tiny: TrainedPolicy, seen: list) -> None:
        done: dict[type[Attack], list[float]] = {Noise: [], PGD: []}
        for frames, observation in seen:
            for kind, values in done.items():
                attack = make(kind, 4 / 255, tiny, steps=10)
                values.append(deviation(tiny, attack(frames, observation), frames, observation))
        assert np.mean(done[PGD]) > 4 * np.mean(done[Noise])

    def test_more_steps_do_not_weaken_it(self, tiny: TrainedPolicy, seen: list) -> None:
        def mean(steps: int) -> float:
            return float(np.mean([deviation(tiny, make(PGD, 4 / 255, tiny, steps)(f, o), f, o) for f, o in seen]))

        assert mean(10) > 0.9 * mean(1)

    def test_a_larger_bound_does_more(self, tiny: TrainedPolicy, seen: list) -> None:
        frames, observation = seen[0]
        small, large = (
            deviation(tiny, make(PGD, values / 255, tiny)(frames, observation), frames, observation)
            for values in (1, 8)
        )
        assert large > 4 * small

    def test_it_leaves_no_gradients_behind(self, tiny: TrainedPolicy, seen: list) -> None:
        make(PGD, 4 / 255, tiny, steps=1)(*seen[0])
        assert all(parameter.grad is None for parameter in tiny.network.parameters())


def run(env: ManipulationEnv, policy: object, condition: Condition, episode: int = 0) -> EpisodeRecord:
    return run_episode(env, "pick_place", policy, "mine", condition, 0, episode)  # type: ignore[arg-type]


class TestAttackedEpisodes:
    @pytest.mark.parametrize("name", attacks.ATTACKS)
    def test_only_what_the_policy_sees_is_changed(
        self, name: str, tiny: TrainedPolicy, brief_env: ManipulationEnv
    ) -> None:
        clean = run(brief_env, tiny, CLEAN)
        attacked = run(brief_env, tiny, Condition(name, "sensor", name, 4 / 255, 2))
        assert (clean.error, attacked.error) == ("", "")
        assert attacked.start_hash == clean.start_hash
        assert attacked.instruction == clean.instruction
        assert attacked.frame_hash != clean.frame_hash
        assert attacked.end_hash != clean.end_hash
        assert (clean.largest_change, attacked.largest_change) == (0, 4)

    def test_the_attack_moves_neither_the_jitter_nor_the_policys_stream(self, brief_env: ManipulationEnv) -> None:
        boxes: dict[str, list[np.ndarray]] = {}

        class Noting(Watching):
            def reset(self, episodes: list[EpisodeStart]) -> None:
                super().reset(episodes)
                self.seen = boxes.setdefault(condition.name, [])
                self.rng = episodes[0].rng

            def act(self, observations: Observations) -> np.ndarray:
                self.seen.append(np.append(observations["wrist/boxes"], self.rng.random()))
                return super().act(observations)

        for condition in (CLEAN, Condition("noise", "sensor", "noise", 8 / 255)):
            record = run(brief_env, Noting(), condition)
            assert record.error == ""
        assert np.array_equal(boxes["clean"], boxes["noise"])
        assert len(boxes["clean"]) == BRIEF_STEPS

    def test_the_same_episode_twice_gives_the_same_row(self, tiny: TrainedPolicy, brief_env: ManipulationEnv) -> None:
        for condition in (CLEAN, Condition("pgd", "sensor", "pgd", 4 / 255, 2)):
            first = run(brief_env, tiny, condition)
            run(brief_env, tiny, condition, episode=1)
            again = run(brief_env, tiny, condition)
            assert replace(first, latency_ms=[]) == replace(again, latency_ms=[])

    def test_an_attack_of_ones_own(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Whiten(Attack):
            """Nothing but white, as far as it may."""

            def propose(self, frames: Frames, observation: Observation) -> Frames:
                return {camera: frame / 255 + self.threat.eps for camera, frame in frames.items()}

        monkeypatch.setitem(attacks.ATTACKS, "whiten", Whiten)  # type: ignore[arg-type]
        record = run(brief_env, tiny, Condition("whiten", "sensor", "whiten", 16 / 255))
        assert (record.error, record.largest_change) == ("", 16)

    @pytest.mark.parametrize("by", [1, -1])
    def test_one_that_breaks_its_bound_becomes_an_error(
        self, by: int, tiny: TrainedPolicy, brief_env: ManipulationEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Overdone(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                return {camera: frame / 255 + by * (self.threat.eps + 1 / 255) for camera, frame in frames.items()}

        monkeypatch.setitem(attacks.ATTACKS, "overdone", Overdone)  # type: ignore[arg-type]
        record = run(brief_env, tiny, Condition("overdone", "sensor", "overdone", 16 / 255))
        assert record.error.startswith("ValueError: Overdone proposed a change of 17/255, the bound is 16/255")
        assert (record.success, record.steps) == (False, 0)

    def test_an_attack_that_fails_becomes_an_error(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Failing(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                raise ZeroDivisionError("no gradient")

        monkeypatch.setitem(attacks.ATTACKS, "failing", Failing)  # type: ignore[arg-type]
        record = run(brief_env, tiny, Condition("failing", "sensor", "failing", 16 / 255))
        assert (record.error, record.success, record.steps) == ("ZeroDivisionError: no gradient", False, 0)

    def test_a_nested_source_cannot_be_attacked(self, tiny: TrainedPolicy, brief_env: ManipulationEnv) -> None:
        with pytest.raises(UserError, match="sensor"):
            run(brief_env, tiny, Condition("noise", "nested", "noise", 4 / 255))
