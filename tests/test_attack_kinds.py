"""Every kind of attack: as strong as it can be where that is known, in the right order, and only where it may be."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pyramids
from hypothesis import given
from hypothesis import strategies as st
from tiny import PYRAMID

from mrvlm_sim.agents.policy import Requirements
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.evaluation.moments import harm
from mrvlm_sim.metrics.attacks import ATTACKS, Attack, Surrogate, Threat, Victim
from mrvlm_sim.metrics.attacks.base import Moment, Prepared
from mrvlm_sim.metrics.attacks.gradient import APGD, FGSM, MAD, PGD, Features, Targeted
from mrvlm_sim.metrics.attacks.objectives import way_to_another
from mrvlm_sim.metrics.attacks.search import BestOfNoise, HardLabel, Noise, Square
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.vision import Jitter, Pyramid, cut, cut_batch, tokenise
from mrvlm_sim.wrappers import MultiResolutionTokens
from mrvlm_sim.wrappers.tokens import Frames

pytestmark = pytest.mark.slow

EPS = 8 / 255
STILL = PYRAMID.model_copy(update={"jitter": Jitter()})
View = tuple[Frames, Observation]


@pytest.fixture(scope="module")
def seen(env: ManipulationEnv) -> list[View]:
    """The first frames of some episodes."""
    views = []
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        observation |= {"wrist/origins": PYRAMID.centred()}
        views.append(({"wrist": env.renderer.frame("wrist", PYRAMID.frame_size)}, observation))
    return views


def make(kind: type[Attack], policy: object, seed: int = 0, mask: Any = None, env: Any = None, **threat: Any) -> Attack:
    victim = Victim(policy, {"wrist": PYRAMID}, executed=4, env=env)
    return kind(Threat(**{"eps": EPS, "steps": 8, **threat}), victim, np.random.default_rng(seed), mask)


@torch.no_grad()
def outputs(policy: TrainedPolicy, frames: Frames, observation: Observation, features: bool = False) -> torch.Tensor:
    jitters = PYRAMID.place(PYRAMID.jitter.stationary(np.random.default_rng(9), (8, PYRAMID.levels, 2)))
    scaled = {camera: torch.from_numpy(frame.astype(np.float32) / 255) for camera, frame in frames.items()}
    return (policy.encodings if features else policy.action_chunks)(scaled, {"wrist": jitters}, observation)


def moved(kind: type[Attack], policy: TrainedPolicy, views: list[View], features: bool = False, **how: Any) -> float:
    """Mean squared deviation that an attack reaches, over frames."""
    found = []
    for frames, observation in views:
        attacked = make(kind, policy, **how)(frames, observation)
        clean, now = (outputs(policy, each, observation, features) for each in (frames, attacked))
        found.append(float((now - clean).square().mean()))
    return float(np.mean(found))


class Linear:
    """One action, a weighted sum of all pixels, through no eyes at all."""

    def __init__(self, size: int = 8) -> None:
        self.weights = torch.randn(size, size, 3, generator=torch.Generator().manual_seed(0))

    def action_chunks(self, frames: Mapping[str, torch.Tensor], origins: object, observation: object) -> torch.Tensor:
        return (frames["wrist"] * self.weights).sum().reshape(1, 1, 1)


class TestStrength:
    @pytest.mark.parametrize("kind", [FGSM, PGD, APGD])
    def test_on_a_linear_policy_it_finds_the_worst_case(self, kind: type[Attack]) -> None:
        policy, grey = Linear(), {"wrist": np.full((8, 8, 3), 128, np.uint8)}
        attack = kind(Threat(EPS, 20), Victim(policy, {"wrist": STILL}), np.random.default_rng(0))
        change = torch.from_numpy(attack(grey, {})["wrist"].astype(np.float32) - 128) / 255
        worst = EPS * policy.weights.abs().sum()
        assert abs((change * policy.weights).sum()) >= 0.99 * worst

    def test_they_come_in_the_order_that_they_should(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        noise, best, square, fgsm, pgd = (moved(kind, tiny, seen) for kind in (Noise, BestOfNoise, Square, FGSM, PGD))
        assert noise < best < fgsm < 1.2 * pgd
        assert best < square < pgd

    def test_halved_steps_pay_when_there_are_many(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        apgd, pgd, few = (moved(k, tiny, seen, steps=n) for k, n in ((APGD, 24), (PGD, 24), (APGD, 4)))
        assert few < apgd
        assert apgd > 0.8 * pgd

    def test_each_does_most_of_what_it_is_for(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        assert moved(Features, tiny, seen, features=True) > 4 * moved(Noise, tiny, seen, features=True)
        assert moved(MAD, tiny, seen) > 4 * moved(Noise, tiny, seen)

    def test_hard_labels_are_enough_to_turn_actions_round(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        def turned(kind: type[Attack]) -> float:
            found = []
            for frames, observation in seen:
                attack = make(kind, tiny, eps=32 / 255, steps=12)
                before, now = (
                    outputs(tiny, each, observation).mean(0) for each in (frames, attack(frames, observation))
                )
                found.append(float((before[:4].sign() != now[:4].sign()).float().mean()))
            return float(np.mean(found))

        assert turned(HardLabel) > turned(Noise)

    def test_a_target_is_approached(self, tiny: TrainedPolicy) -> None:
        env = make_own_env("pick_place")
        nearer = []
        for seed in range(4):
            observation, _ = env.reset(seed=seed)
            frames = {"wrist": env.renderer.frame("wrist", PYRAMID.frame_size)}
            target = torch.from_numpy(way_to_another(env))
            attacked = make(Targeted, tiny, env=env)(frames, observation)
            clean, now = (outputs(tiny, each, observation)[:, :4, :3] for each in (frames, attacked))
            nearer.append(float((clean - target).square().mean() - (now - target).square().mean()))
        env.close()
        assert np.mean(nearer) > 0
        assert min(nearer) > -0.01

    def test_the_target_is_another_thing(self) -> None:
        env = make_own_env("reach")
        for seed in range(4):
            env.reset(seed=seed)
            landmarks = env.task.landmarks(env.scene)
            way = way_to_another(env)
            others = [thing for thing in landmarks[2:] if np.linalg.norm(thing - landmarks[0]) > 0.01]
            scale = env.scene.arm.scale.translation
            assert any(np.allclose(way, np.clip(thing / scale, -1, 1), atol=1e-5) for thing in others)
        env.close()
        with pytest.raises(UserError, match="own environments only"):
            way_to_another(None)


class Brightness:
    """Gives no gradients: it moves by how bright its full view is, and keeps count of its steps."""

    requirements = Requirements({"wrist": PYRAMID})

    def reset(self, episodes: object) -> None:
        self.steps = 0

    def act(self, observations: Any) -> np.ndarray:
        self.steps += 1
        tokens = observations["wrist/tokens"].astype(float) / 255
        return np.tanh(8 * (tokens[:, :, ::3].mean(axis=(1, 2)) - 0.5))[:, None] * np.ones(5)


class TestWithoutGradients:
    def test_a_search_finds_more_than_noise(self, seen: list[View]) -> None:
        policy = Brightness()
        policy.reset([])

        def answer(frames: Frames) -> float:
            tokens = tokenise(cut(frames["wrist"], PYRAMID.centred(), PYRAMID), PYRAMID)
            return float(Brightness.act(fresh(), {"wrist/tokens": tokens[None]})[0, 0])

        frames, observation = seen[0]
        found = {
            kind: abs(answer(make(kind, policy)(frames, observation)) - answer(frames)) for kind in (Noise, Square)
        }
        assert found[Square] > 2 * found[Noise]
        assert policy.steps == 0, "the policy itself is not asked, only copies of it"

    def test_who_remembers_is_asked_about_this_episode(self, brief_env: ManipulationEnv) -> None:
        """A policy is begun before its first look is attacked, so an episode does not depend on those before it."""

        class Remembering(Brightness):
            def reset(self, episodes: Any) -> None:
                self.steps, self.offset = 0, float(episodes[0].rng.random())

            def act(self, observations: Any) -> np.ndarray:
                return np.clip(super().act(observations) * self.offset + 0.01 * self.steps, -1, 1)

        condition = Condition("square", "sensor", "square", EPS, 1)
        fresh_record = run_episode(brief_env, "pick_place", Remembering(), "r", condition, 0, 0)
        used = Remembering()
        run_episode(brief_env, "pick_place", used, "r", condition, 0, 1)
        again = run_episode(brief_env, "pick_place", used, "r", condition, 0, 0)
        assert fresh_record.error == ""
        assert replace(again, latency_ms=[]) == replace(fresh_record, latency_ms=[])

    def test_what_cannot_be_copied_cannot_be_asked(self, seen: list[View]) -> None:
        class Connected(Brightness):
            def __deepcopy__(self, memo: object) -> "Connected":
                raise TypeError("cannot pickle a socket")

        with pytest.raises(UserError, match=r"cannot be copied .* attack it by noise, or by transfer"):
            make(Square, Connected())(*seen[0])


def fresh() -> Brightness:
    policy = Brightness()
    policy.reset([])
    return policy


class TestWhatIsKnownOfTheJitter:
    def test_where_levels_lie(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        _, observation = seen[0]
        actual = PYRAMID.place(np.full((3, 2), 0.1))
        observation = observation | {"wrist/origins": actual}
        drawn = {
            k: make(PGD, tiny, knowledge=k, draws=5).draw(observation)["wrist"] for k in ("off", "known", "unknown")
        }
        assert (drawn["off"] == PYRAMID.centred()[None]).all()
        assert (drawn["known"] == actual[None]).all()
        assert drawn["unknown"].shape == (5, 3, 2)
        assert len(np.unique(drawn["unknown"][:, 2], axis=0)) > 2

    def test_a_random_gaze_is_not_known(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        _, observation = seen[0]
        looked = observation | {"wrist/gaze": np.array([0.9, 0.9])}
        for gaze, known in (("random", False), ("oracle", True), ("policy", True)):
            eyes = {"wrist": PYRAMID.model_copy(update={"gaze": gaze, "jitter": Jitter()})}
            attack = PGD(Threat(EPS, draws=6), Victim(tiny, eyes), np.random.default_rng(0))
            drawn = attack.draw(looked)["wrist"]
            assert (len(np.unique(drawn[:, 2], axis=0)) == 1) == known
            assert (drawn[0] == PYRAMID.place(np.zeros((3, 2)), looked["wrist/gaze"])).all() == known

    def test_an_attacker_who_chooses_is_obeyed(self, tiny: TrainedPolicy, brief_env: ManipulationEnv) -> None:
        attack = make(PGD, tiny, knowledge="chosen", draws=6, steps=1)
        wrapped = MultiResolutionTokens(brief_env, {"wrist": PYRAMID}, "sensor", attack)
        observation, _ = wrapped.reset(seed=0)
        assert attack.chosen is not None
        assert (observation["wrist/boxes"] == PYRAMID.token_boxes(attack.chosen["wrist"])).all()

    def test_knowing_more_helps(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        """Against wide jitter that it knows, an attack does more than one that must do with the expectation."""
        wide = PYRAMID.model_copy(update={"jitter": Jitter(tremor=0.5)})
        gains = []
        for index, (frames, observation) in enumerate(seen):
            actual = wide.place(wide.jitter.stationary(np.random.default_rng(index), (3, 2)))
            placed, moment = observation | {"wrist/origins": actual}, Moment(frames, observation)
            victim = Victim(tiny, {"wrist": wide}, executed=4)
            known, unknown = (
                PGD(Threat(EPS, 20, knowledge), victim, np.random.default_rng(0))(frames, placed)
                for knowledge in ("known", "unknown")
            )
            place = {"wrist": actual[None]}
            gains.append(harm(victim, moment, known, place) - harm(victim, moment, unknown, place))
        assert np.mean(gains) > 0

    def test_unknown_knowledge_is_refused(self) -> None:
        with pytest.raises(UserError, match="Did you mean 'known'"):
            Threat(EPS, knowledge="knwon")  # type: ignore[arg-type]


def prepare(attack: Attack, frames: Frames, observation: Observation, env: ManipulationEnv) -> None:
    if isinstance(attack, Prepared):
        attack.prepare([Moment(frames, observation, attack.note(env))])


class TestRules:
    @pytest.mark.parametrize("name", ATTACKS)
    def test_only_masked_pixels_change(self, name: str, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        def left_half(size: int) -> np.ndarray:
            return np.tile(np.arange(size) < size // 2, (size, 1))

        observation, _ = env.reset(seed=0)
        frames = {"wrist": env.renderer.frame("wrist", PYRAMID.frame_size)}
        attack = make(ATTACKS[name], tiny, mask=left_half, env=env, steps=2)
        prepare(attack, frames, observation, env)
        change = attack(frames, observation)["wrist"].astype(int) - frames["wrist"]
        assert (change[:, 64:] == 0).all()
        assert np.abs(change[:, :64]).max() == 8

    @pytest.mark.parametrize("name", ATTACKS)
    def test_what_it_costs_is_counted(self, name: str, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        observation, _ = env.reset(seed=0)
        attack, frames = make(ATTACKS[name], tiny, env=env, steps=3), {"wrist": env.renderer.frame("wrist", 128)}
        prepare(attack, frames, observation, env)
        before = attack.backwards
        attack(frames, observation)
        steps = 0 if isinstance(attack, Prepared) else 1 if name == "fgsm" else 3
        assert attack.backwards - before == (4 * steps if attack.white_box else 0)
        assert (attack.forwards > 0) == (name != "noise")

    def test_what_is_not_finite_is_an_error_of_the_episode(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Broken(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                return {camera: np.full(frame.shape, np.nan) for camera, frame in frames.items()}

        monkeypatch.setitem(ATTACKS, "broken", Broken)  # type: ignore[arg-type]
        record = run_episode(brief_env, "pick_place", tiny, "t", Condition("broken", "sensor", "broken", EPS), 0, 0)
        assert record.error.startswith("ValueError: Broken proposed values that are not finite")

    def test_an_attack_cannot_move_the_bound_by_changing_its_input(self, seen: list[View]) -> None:
        class Sly(Attack):
            def propose(self, frames: Frames, observation: Observation) -> Frames:
                frames["wrist"] += 100
                return {camera: frame / 255 + EPS for camera, frame in frames.items()}

        frames = {"wrist": np.full((8, 8, 3), 50, np.uint8)}
        with pytest.raises(ValueError, match="Sly proposed a change of 108/255, the bound is 8/255"):
            make(Sly, None)(frames, {})

    def test_sizes_in_the_wrong_unit(self) -> None:
        with pytest.raises(UserError, match="write 4/255"):
            Threat(4.0)


class TestTransfer:
    def test_from_eyes_of_another_width(self, tiny: TrainedPolicy, seen: list[View]) -> None:
        """An attack found on a surrogate with larger frames does more than noise, and less than a direct one."""
        theirs = {"wrist": PYRAMID.model_copy(update={"frame_size": 256})}
        surrogate = Surrogate(TrainedPolicy(tiny.card, tiny.network, tiny.device), theirs, {"wrist": PYRAMID}, "s")
        surrogate.policy.card = tiny.card.model_copy(update={"cameras": theirs})  # type: ignore[attr-defined]
        done = []
        for frames, observation in seen:
            own, other = Victim(tiny, {"wrist": PYRAMID}, 4), Victim(surrogate, theirs, 4)
            attack = PGD(Threat(EPS, 8), own, np.random.default_rng(0), surrogate=other)
            clean, now = (outputs(tiny, each, observation) for each in (frames, attack(frames, observation)))
            done.append(float((now - clean).square().mean()))
        assert moved(Noise, tiny, seen) < np.mean(done) < moved(PGD, tiny, seen)

    def test_other_cameras_are_refused(self, tiny: TrainedPolicy) -> None:
        with pytest.raises(UserError, match="surrogate s looks through scene, the attacked policy through wrist"):
            Surrogate(tiny, {"scene": PYRAMID}, {"wrist": PYRAMID}, "s")

    def test_without_gradients_there_is_nothing_to_transfer(self) -> None:
        with pytest.raises(UserError, match="'known' jitter, which is the victim's"):
            PGD(Threat(EPS, knowledge="known"), Victim(None, {}), np.random.default_rng(0), surrogate=Victim(None, {}))
        with pytest.raises(UserError, match="gives no gradients"):
            Surrogate(Brightness(), {"wrist": PYRAMID}, {"wrist": PYRAMID}, "s")


class TestCuttingManyAtOnce:
    @given(pyramids(max_frame=120, gaps=True), st.integers(0, 2**32 - 1))
    def test_as_one_by_one(self, pyramid: Pyramid, seed: int) -> None:
        rng = np.random.default_rng(seed)
        frame = torch.from_numpy(rng.random((pyramid.frame_size, pyramid.frame_size, 3)))
        origins = pyramid.place(pyramid.jitter.stationary(rng, (5, pyramid.levels, 2)))
        batch = cut_batch(frame, origins, pyramid)
        for k, places in enumerate(origins):
            for level, view in enumerate(cut(frame, places, pyramid)):
                torch.testing.assert_close(batch[level][k], view)

    def test_the_gradient_is_the_same(self) -> None:
        card, _ = arm_card("pyramid-48-embedded")
        pyramid = card.cameras["wrist"]
        origins = pyramid.place(pyramid.jitter.stationary(np.random.default_rng(0), (3, 3, 2)))
        slopes = []
        for together in (True, False):
            frame = torch.rand(512, 512, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
            views = (
                cut_batch(frame, origins, pyramid)
                if together
                else [torch.stack(level) for level in zip(*(cut(frame, o, pyramid) for o in origins), strict=True)]
            )
            sum((view**2).sum() for view in views).backward()
            slopes.append(frame.grad)
        torch.testing.assert_close(slopes[0], slopes[1])
