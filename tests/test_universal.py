"""Attacks that see other episodes first, patches that choose their place, and restarts."""

import numpy as np
import pytest
import torch
from tiny import PYRAMID

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import _prepared, run_episode
from mrvlm_sim.metrics.attacks import Attack, Threat, Victim, make_mask
from mrvlm_sim.metrics.attacks.base import Moment, tensors
from mrvlm_sim.metrics.attacks.gradient import FGSM, PGD
from mrvlm_sim.metrics.attacks.objectives import Deviation
from mrvlm_sim.metrics.attacks.regions import FreePatch
from mrvlm_sim.metrics.attacks.universal import Universal
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.wrappers.tokens import Frames

pytestmark = pytest.mark.slow

EPS = 8 / 255


@pytest.fixture(scope="module")
def looks(env: ManipulationEnv) -> list[Moment]:
    """The first looks of some episodes: four to prepare on and four others."""
    found = list[Moment]()
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        observation |= {"wrist/origins": PYRAMID.centred()}
        found.append(Moment({"wrist": env.renderer.frame("wrist", PYRAMID.frame_size)}, observation))
    return found


def make(kind: type[Attack], policy: object, region: str = "frame", **threat: object) -> Attack:
    whole = Threat(**{"eps": EPS, "steps": 4, **threat})  # type: ignore[arg-type]
    return kind(whole, Victim(policy, {"wrist": PYRAMID}, 4), np.random.default_rng(0), make_mask(region))


@torch.no_grad()
def done(policy: TrainedPolicy, look: Moment, attacked: Frames) -> float:
    """The squared deviation of the actions under fresh jitter."""
    frames, observation, _ = look
    jitter = PYRAMID.place(PYRAMID.jitter.stationary(np.random.default_rng(9), (8, 3, 2)))
    objective, origins = Deviation(Victim(policy, {"wrist": PYRAMID})), {"wrist": jitter}
    objective.begin(tensors(frames), origins, observation)
    return float(objective.loss(tensors(attacked), origins, observation))


class TestUniversal:
    def test_one_change_for_all_frames_does_more_than_noise_on_others(
        self, tiny: TrainedPolicy, looks: list[Moment]
    ) -> None:
        attack = make(Universal, tiny)
        assert isinstance(attack, Universal)
        attack.prepare(looks[:4])
        signs = EPS * np.random.default_rng(1).choice([-1.0, 1.0], (128, 128, 3))
        ours, noise = [], []
        for frames, observation, _ in looks[4:]:
            ours.append(done(tiny, Moment(frames, observation), attack(frames, observation)))
            noisy = np.clip(np.rint(frames["wrist"] + 255 * signs), 0, 255).astype(np.uint8)
            noise.append(done(tiny, Moment(frames, observation), {"wrist": noisy}))
        assert np.mean(ours) > 5 * np.mean(noise)
        assert attack.largest == 8

    def test_the_change_is_the_same_in_every_look(self, tiny: TrainedPolicy, looks: list[Moment]) -> None:
        attack = make(Universal, tiny)
        attack.prepare(looks[:2])  # type: ignore[attr-defined]
        grey = [{"wrist": np.full((128, 128, 3), value, np.uint8)} for value in (100, 150)]
        changes = [attack(frames, looks[0][1])["wrist"].astype(int) - frames["wrist"] for frames in grey]
        assert (changes[0] == changes[1]).all()

    def test_it_cannot_know_this_episodes_jitter(self, tiny: TrainedPolicy) -> None:
        with pytest.raises(UserError, match="Universal cannot have known jitter; it can have off, unknown"):
            make(Universal, tiny, knowledge="known")
        with pytest.raises(UserError, match="attack universal cannot have chosen jitter"):
            Condition("u", "sensor", "universal", EPS, knowledge="chosen")

    def test_an_episode_does_not_depend_on_those_before_it(
        self, tiny: TrainedPolicy, brief_env: ManipulationEnv, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mrvlm_sim.evaluation.episode.PREPARED_ON", 2)
        condition = Condition("u", "sensor", "universal", EPS, 1)
        first, _ = (run_episode(brief_env, "reach", tiny, "t", condition, 0, episode) for episode in (0, 1))
        _prepared.cache_clear()
        again = run_episode(brief_env, "reach", tiny, "t", condition, 0, 0)
        assert first.error == ""
        assert (first.end_hash, first.frame_hash) == (again.end_hash, again.frame_hash)
        assert first.largest_change == 8


class TestFreePatch:
    def test_it_lies_where_the_policy_looks(self, looks: list[Moment]) -> None:
        """Of a policy that sees one corner only, the patch covers that corner."""

        class Corner:
            def action_chunks(self, frames: dict, origins: object, observation: object) -> torch.Tensor:
                return frames["wrist"][:20, -20:].mean().reshape(1, 1, 1)

        attack = make(PGD, Corner(), "patch", eps=1.0)
        frames, observation, _ = looks[0]
        changed = (attack(frames, observation)["wrist"] != frames["wrist"]).any(-1)
        assert changed[:20, -20:].mean() > 0.9
        assert changed.mean() <= 0.055

    def test_it_stays_for_the_episode(self, tiny: TrainedPolicy, looks: list[Moment]) -> None:
        attack = make(FGSM, tiny, "patch", eps=1.0)
        masks = []
        for frames, observation, _ in looks[:3]:
            attack(frames, observation)
            assert attack.mask is not None
            masks.append(attack.mask(128).copy())
        assert all((mask == masks[0]).all() for mask in masks)
        assert masks[0].mean() == pytest.approx(0.05, rel=0.05)

    def test_a_universal_one_is_placed_before_the_episode(self, tiny: TrainedPolicy, looks: list[Moment]) -> None:
        attack, other = make(Universal, tiny, "patch", eps=1.0), make(Universal, tiny, "patch", eps=1.0)
        attack.prepare(looks[:2])  # type: ignore[attr-defined]
        other.take_over(attack)  # type: ignore[attr-defined]
        assert isinstance(other.mask, FreePatch)
        assert other.mask.place is not None
        frames, observation, _ = looks[5]
        changed = (other(frames, observation)["wrist"] != frames["wrist"]).any(-1)
        assert 0.03 < changed.mean() <= 0.055


class TestRestarts:
    def test_the_best_of_them_is_kept(self, tiny: TrainedPolicy, looks: list[Moment]) -> None:
        gains = [
            done(tiny, look, make(FGSM, tiny, restarts=6, draws=16)(*look[:2]))
            - done(tiny, look, make(FGSM, tiny)(*look[:2]))
            for look in looks
        ]
        assert np.mean(gains) > 0

    def test_what_they_cost_is_counted(self, tiny: TrainedPolicy, looks: list[Moment]) -> None:
        once, thrice = make(PGD, tiny), make(PGD, tiny, restarts=3)
        for attack in (once, thrice):
            attack(*looks[0][:2])
        assert thrice.backwards == 3 * once.backwards

    def test_none_is_refused(self) -> None:
        with pytest.raises(UserError, match="begins at least once, not 0 times"):
            Threat(EPS, restarts=0)
