"""Attacks that are directed: back from where the policy would go, or as an adversary says that was trained for it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rl import BRIEF
from tiny import PYRAMID, save_tiny
from typer.testing import CliRunner

from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.trained import TrainedPolicy, load_trained
from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.evaluation.robustness import attack_conditions, check_attackable
from mrvlm_sim.evaluation.runs import condition_identity
from mrvlm_sim.metrics.attacks import Threat, Victim
from mrvlm_sim.metrics.attacks.base import tensors
from mrvlm_sim.metrics.attacks.directed import (
    WEIGHTS,
    AdversaryCard,
    Directed,
    adversary_sees,
    load_adversary,
    make_director,
    save_adversary,
)
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training import adversary as training
from mrvlm_sim.training.adversary import AdversaryEnv, AdversaryTraining

pytestmark = pytest.mark.slow

EPS = 16 / 255
CARD = AdversaryCard(
    environment=BRIEF, policy="tiny", identity="", eps=EPS, steps=1, draws=1, training_steps=32, seed=0, sizes=[1, 1]
)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ROLLOUT", 16)
    monkeypatch.setattr(training, "BATCH", 8)


class TestDirected:
    def moved(self, policy: TrainedPolicy, env: ManipulationEnv, direction: np.ndarray | None) -> np.ndarray:
        """The change of the executed actions (A,), mean over a few frames."""
        found = []
        for seed in range(3):
            observation, _ = env.reset(seed=seed)
            frames = {"wrist": env.renderer.frame("wrist", PYRAMID.frame_size)}
            attack = Directed(Threat(EPS, 6), Victim(policy, {"wrist": PYRAMID}, 4), np.random.default_rng(0))
            attack.direction = direction
            attacked, origins = attack(frames, observation), {"wrist": PYRAMID.centred()[None]}
            clean, now = (
                policy.action_chunks(tensors(seen), origins, observation).detach()[0, :4].clamp(-1, 1).mean(0)
                for seen in (frames, attacked)
            )
            found.append((now - clean).numpy() * (1 if direction is not None else -np.sign(clean.numpy())))
        return np.mean(found, axis=0)

    def test_actions_go_where_they_are_told(self, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        ways = np.eye(5)
        for axis in (0, 1):
            there, back = self.moved(tiny, env, ways[axis]), self.moved(tiny, env, -ways[axis])
            assert there[axis] > 0 > back[axis]

    def test_without_a_director_they_go_back(self, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        assert self.moved(tiny, env, None).mean() > 0

    def test_a_director_is_asked_about_the_state(self, tiny: TrainedPolicy, env: ManipulationEnv) -> None:
        observation, _ = env.reset(seed=0)
        seen = adversary_sees(env, observation)
        assert np.isfinite(seen).all()
        attack = Directed(Threat(EPS, 1), Victim(tiny, {"wrist": PYRAMID}, 4, env), np.random.default_rng(0))
        attack.director = make_director([len(seen), 8, 5])
        attack({"wrist": env.renderer.frame("wrist", PYRAMID.frame_size)}, observation)
        expected = attack.director(torch.from_numpy(seen)).clamp(-1, 1)
        assert torch.allclose(attack.objective.direction, expected)
        with pytest.raises(UserError, match="own environments only"):
            adversary_sees(None, observation)


class TestFiles:
    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        director = make_director([7, 8, 5])
        save_adversary(tmp_path, CARD.model_copy(update={"sizes": [7, 8, 5]}), director)
        seen = torch.rand(7)
        assert torch.equal(load_adversary(tmp_path)(seen), director(seen))

    def test_what_is_missing_or_damaged_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(
            UserError, match=r"no adversary in .*adversary-uniform-49; take .*adversary-uniform-49/adversary"
        ):
            load_adversary(Path(__file__).parents[1] / "results" / "robustness" / "adversary-uniform-49")
        with pytest.raises(UserError, match="train one: mrvlm-sim train adversary"):
            load_adversary(tmp_path)
        save_adversary(tmp_path, CARD.model_copy(update={"sizes": [7, 8, 5]}), make_director([7, 9, 5]))
        with pytest.raises(UserError, match="does not fit"):
            load_adversary(tmp_path)
        (tmp_path / WEIGHTS).write_bytes(b"")
        with pytest.raises(UserError, match="does not fit"):
            load_adversary(tmp_path)

    def test_only_what_is_directed_takes_one(self) -> None:
        with pytest.raises(UserError, match="directs the attack directed, and no surrogate, not pgd"):
            Condition("x", "sensor", "pgd", EPS, adversary="somewhere")
        with pytest.raises(UserError, match="no adversary in"):
            attack_conditions(["directed"], [EPS], 1, 1, adversaries=["nowhere"])


class TestTraining:
    def run(self, policy: TrainedPolicy, folder: Path, decisions: int = 32) -> AdversaryTraining:
        made = AdversaryTraining(policy, CARD.model_copy(update={"training_steps": decisions}), folder)
        made.run(lambda *_: None)
        return made

    def test_it_is_paid_what_the_policy_loses(self, tiny: TrainedPolicy) -> None:
        env = AdversaryEnv(tiny, BRIEF, Threat(EPS, 1, draws=1), 0)
        env.reset(seed=0)
        own = make_own_env(f"{BRIEF[:-1]};reward=dense]")
        _, lost, over, *_ = env.step(np.zeros(5, np.float32))
        assert lost > 0, "dense reward of reach is negative"
        assert not over
        count = 1
        while not over:
            seen, _, terminated, over, info = env.step(np.ones(5, np.float32))
            over, count = over or terminated, count + 1
        assert count == 3, "12 steps, 4 to a look"
        assert env.observation_space.contains(seen)
        assert env.attack.largest == 16
        assert "is_success" in info
        own.close()
        env.close()

    def test_going_on_equals_never_having_stopped(self, tiny: TrainedPolicy, tmp_path: Path) -> None:
        whole = self.run(tiny, tmp_path / "whole")

        def stop(saved: int, figures: object) -> None:
            raise KeyboardInterrupt

        card = CARD.model_copy(update={"training_steps": 32})
        with pytest.raises(KeyboardInterrupt):
            AdversaryTraining(tiny, card, tmp_path / "parted").run(stop)
        again = AdversaryTraining(tiny, card, tmp_path / "parted")
        assert again.saved == 16
        again.run(lambda *_: None)
        ours, theirs = (load_adversary(tmp_path / name / "adversary").state_dict() for name in ("whole", "parted"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        curve = pd.read_csv(tmp_path / "parted" / "curve.csv")
        assert curve["decisions"].tolist() == [16, 32] == [row["decisions"] for row in whole.curve]

    def test_what_was_trained_attacks(self, tiny: TrainedPolicy, tmp_path: Path, brief_env: ManipulationEnv) -> None:
        self.run(tiny, tmp_path, 16)
        folder = str(tmp_path / "adversary")
        conditions = attack_conditions(["directed"], [EPS], 1, 1, adversaries=[folder])
        assert [c.adversary for c in conditions] == [None, None, folder]
        assert conditions[2].own_only
        records = [run_episode(brief_env, "pick_place", tiny, "t", condition, 0, 0) for condition in conditions]
        assert {record.error for record in records} == {""}
        assert len({record.end_hash for record in records}) == 3

    def test_a_run_keeps_which_one_it_was(self, tmp_path: Path) -> None:
        found = []
        for seed in range(2):
            torch.manual_seed(seed)
            save_adversary(tmp_path, CARD.model_copy(update={"sizes": [7, 8, 5]}), make_director([7, 8, 5]))
            condition = Condition("d", "sensor", "directed", EPS, adversary=str(tmp_path))
            found.append(condition_identity(condition)["adversary_sha256"])
        assert found[0] != found[1]

    def test_who_it_was_not_trained_on_is_said(self, tiny: TrainedPolicy, tmp_path: Path) -> None:
        save_adversary(tmp_path, CARD.model_copy(update={"sizes": [7, 8, 5]}), make_director([7, 8, 5]))
        conditions = attack_conditions(["directed"], [EPS], 1, 1, adversaries=[str(tmp_path)])
        assert "was trained on tiny, not on other" in check_attackable({"other": tiny}, conditions)[0]
        save_adversary(tmp_path, CARD.model_copy(update={"sizes": [7, 8, 7]}), make_director([7, 8, 7]))
        with pytest.raises(UserError, match="directs 7 numbers, the actions of tiny have 5"):
            check_attackable({"tiny": tiny}, conditions)

    def test_what_is_wrong_is_refused(self, tiny: TrainedPolicy, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="must be a multiple of 16, not 17"):
            self.run(tiny, tmp_path, 17)
        with pytest.raises(UserError, match="directs gradients, which tiny does not give"):
            AdversaryTraining(load_policy("random"), CARD, tmp_path)
        self.run(tiny, tmp_path, 16)
        with pytest.raises(UserError, match="of another adversary; choose another --output"):
            AdversaryTraining(tiny, CARD.model_copy(update={"eps": 0.5}), tmp_path)

    def test_the_command(self, tmp_path: Path) -> None:
        policy, output = str(save_tiny(tmp_path / "tiny")), tmp_path / "out"
        arguments = ["train", "adversary", "--env", BRIEF, "--policy", policy, "--decisions", "16", "--steps", "1"]
        result = CliRunner().invoke(app, [*arguments, "--output", str(output)])
        assert result.exit_code == 0, result.exception
        assert "try it: mrvlm-sim attack" in " ".join(result.output.split())
        assert load_adversary(output / "adversary") is not None
        load_trained(Path(policy))
