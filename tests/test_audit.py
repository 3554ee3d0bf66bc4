"""The audit: it passes where attacks are as strong as they should be, and fails where a defence only hides."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rl import BRIEF
from tiny import save_tiny
from typer.testing import CliRunner

from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.trained import TrainedPolicy, load_trained
from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.audit import JUDGED, Audit
from mrvlm_sim.evaluation.gates import UNFAIR, Gate, audit_table, closed_loop_gates, loop_bound_gate, told, verdict
from mrvlm_sim.evaluation.ledger import OWED, ledger, pretty_ledger
from mrvlm_sim.evaluation.moments import sample_moments
from mrvlm_sim.evaluation.robustness import WORST
from mrvlm_sim.metrics.attacks import Attack, Threat
from mrvlm_sim.metrics.statistics import mean_interval

pytestmark = pytest.mark.slow

THREAT = Threat(8 / 255, 4, draws=16)


def audited(policy: Any, moments: int = 6, attack: str = "pgd") -> Audit:
    return Audit(policy, BRIEF, THREAT, moments, attack=attack)


class Hiding(TrainedPolicy):
    """Looks at its frames in a few steps of grey: no slope anywhere, and no less fragile for it."""

    def action_chunks(self, frames: Mapping[str, torch.Tensor], origins: Any, observation: Any) -> torch.Tensor:
        flat = {camera: 0 * frame + ((frame * 100).round() / 100).detach() for camera, frame in frames.items()}
        return super().action_chunks(flat, origins, observation)


class TestGates:
    @pytest.mark.parametrize("attack", JUDGED)
    def test_an_honest_policy_passes(self, tiny: TrainedPolicy, attack: str) -> None:
        gates = audited(tiny, attack=attack).run()
        assert [(gate.name, gate.word) for gate in gates if not gate.passed] == [
            ("direct over transfer from others", "open")
        ]
        assert f"{attack.upper()} over FGSM" in [gate.name for gate in gates]
        levels = [gate for gate in gates if gate.name.startswith("gradients reach level")]
        assert len(levels) == 3

    def test_a_defence_that_only_hides_its_gradients_is_found_out(self, tiny: TrainedPolicy) -> None:
        hiding = Hiding(tiny.card, tiny.network, tiny.device)
        gates = {gate.name: gate.passed for gate in audited(hiding).run()}
        assert not gates["white box over black box"]
        assert gates["eps 0 is clean, to the bit"]
        assert gates["bound and range, on what is fed"]

    def test_a_level_that_nothing_comes_through_is_found_out(self, tiny: TrainedPolicy) -> None:
        network = copy.deepcopy(tiny.network)
        forward = network.forward
        network.forward = (
            lambda tokens, *others: forward(  # type: ignore[method-assign]
                {c: torch.cat([t[:, :32], t[:, 32:].detach()], dim=1) for c, t in tokens.items()}, *others
            )
        )
        gates = {
            gate.name: gate.passed for gate in audited(TrainedPolicy(tiny.card, network, tiny.device), 2).gradients()
        }
        assert gates["gradients reach level 1 of wrist"]
        assert not gates["gradients reach level 2 of wrist"]

    def test_an_arm_with_one_level_of_three_is_asked_about_that_one(self, tmp_path: Path) -> None:
        policy = load_trained(save_tiny(tmp_path / "finest", eyes="finest-level"))
        names = [gate.name for gate in audited(policy, 2).gradients()]
        assert names == ["gradients are finite", "gradients reach level 2 of wrist"]

    @pytest.mark.parametrize(
        ("gain", "passed"),
        [([0.02] * 6, False), ([0.0] * 6, True), ([0.2, -0.1, 0.1, -0.2, 0.2, -0.1], True), ([0.8, -0.7] * 3, None)],
    )
    def test_more_draws_may_do_no_more_but_by_luck(
        self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch, gain: list[float], passed: bool | None
    ) -> None:
        few, audit = np.full(6, 0.5), audited(tiny)
        monkeypatch.setattr(audit, "harms", lambda _, draws=THREAT.draws: few + np.multiply(gain, draws > THREAT.draws))
        gate = audit.enough_draws()
        assert gate.passed is passed
        assert f"{100 * np.mean(gain):+.2f}" in gate.figure

    @pytest.mark.parametrize("judged", JUDGED)
    @pytest.mark.parametrize(("gain", "passed"), [(0.2, False), (0.04, True)])
    def test_attacks_that_better_ones_beat_are_found_out(
        self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch, gain: float, passed: bool, judged: str
    ) -> None:
        audit, luck = audited(tiny, attack=judged), np.array([0.01, -0.01] * 3)
        found = {(judged, THREAT.steps): np.full(6, 0.5), ("apgd", 2 * THREAT.steps): 0.5 + gain + luck}
        monkeypatch.setattr(audit, "harms", lambda attack, steps=THREAT.steps: found[attack, steps])
        assert audit.converged().passed is passed

    def test_attacks_that_do_more_than_they_may_are_found_out(
        self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A base class that is off by one sensor value."""
        held = Attack._held
        monkeypatch.setattr(Attack, "_held", lambda *given: held(*given) ^ 1)
        audit = audited(tiny, 4)
        audit.harms("pgd")
        assert audit.excess == 1
        assert not audit.nothing().passed

    def test_what_is_weaker_beyond_its_interval_fails(self, tiny: TrainedPolicy) -> None:
        audit = audited(tiny)
        assert audit.not_weaker("right", ("pgd", {}), ("noise", {})).passed
        gate = audit.not_weaker("wrong way round", ("noise", {}), ("pgd", {}))
        assert not gate.passed
        assert gate.figure.startswith("-")

    def test_harms_are_measured_once_and_repeat(self, tiny: TrainedPolicy) -> None:
        first, second = audited(tiny, 4), audited(tiny, 4)
        assert first.harms("pgd") is first.harms("pgd")
        assert (first.harms("pgd") == second.harms("pgd")).all()
        assert first.harms("pgd").shape == (4,)

    def test_what_cannot_be_audited(self, tiny: TrainedPolicy) -> None:
        with pytest.raises(UserError, match=r"unknown audited attack 'apg'\. Did you mean 'apgd'"):
            audited(tiny, attack="apg")

    def test_no_gradients_no_audit(self) -> None:
        with pytest.raises(UserError, match="attacks with gradients, which RandomPolicy does not give"):
            audited(load_policy("random"))


class TestLedger:
    def test_choosing_the_jitter_is_worth_something_where_there_is_some(self, tiny: TrainedPolicy) -> None:
        table = ledger(audited(tiny)).set_index("attacker")
        harms = table["harm"]
        assert harms["chosen"] > harms["unknown"]
        assert harms[OWED] == pytest.approx(harms["known"] - harms["unknown"])
        assert (table["low"] <= harms).all()
        assert "[" in pretty_ledger(table.reset_index()).iloc[-1, -1]

    def test_without_jitter_nothing_is_owed_to_it(self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which is not taken for granted where it is not measured again, to save time."""
        still = TrainedPolicy(tiny.card.with_eyes("still"), tiny.network, tiny.device)
        table = ledger(audited(still, 4))
        assert table.set_index("attacker").loc[OWED, ["harm", "low", "high"]].tolist() == [0, 0, 0]
        monkeypatch.setattr(Audit, "still", False)
        pd.testing.assert_frame_equal(ledger(audited(still, 4)), table, atol=1e-6)


class TestLooks:
    def test_they_are_spread_over_episodes(self, tiny: TrainedPolicy) -> None:
        moments = sample_moments(tiny, BRIEF, 7, 0)
        assert len(moments) == 7
        assert len({moment.observation["proprio"].tobytes() for moment in moments}) == 7
        assert len({moment.observation["instruction"].tobytes() for moment in moments}) > 2
        assert all(moment.observation["wrist/origins"].shape == (3, 2) for moment in moments)
        again = sample_moments(tiny, BRIEF, 7, 0)
        assert all((a.frames["wrist"] == b.frames["wrist"]).all() for a, b in zip(moments, again, strict=True))


def lines(*rates: tuple[str, float, float, float]) -> pd.DataFrame:
    """Attack, eps, rate and lower limit."""
    columns = ["attack", "eps", "rate", "low"]
    return pd.DataFrame(rates, columns=columns).assign(k=1, n=10, errors=0, to_failure=90.0)


class TestWholeEpisodes:
    def test_they_pass_when_nothing_is_left(self) -> None:
        table = lines(
            ("clean", 0, 1.0, 0.7), ("pgd", 4 / 255, 0.4, 0.2), ("pgd", 0.5, 0.0, 0.0), ("pgd", 1.0, 0.0, 0.0)
        )
        gates = closed_loop_gates(table, 0.0)
        assert [gate.passed for gate in gates] == [True, True, True]
        assert gates[-1].figure == "after 90 steps; fails in 60 % of episodes at 4/255 (pgd)"

    def test_who_attacks_all_the_time_and_does_nothing_has_no_attack(self) -> None:
        table = lines(("clean", 0, 0.6, 0.4), ("pgd", 4 / 255, 0.7, 0.5))
        assert closed_loop_gates(table, 0.0)[-1].passed is False
        assert closed_loop_gates(table.assign(rate=0.6), 0.0)[-1].passed is True

    def test_no_frame_of_an_episode_may_be_changed_by_more_than_the_bound(self) -> None:
        conditions = {"clean": {"attack": None, "eps": 0.0}, "pgd": {"attack": "pgd", "eps": 4 / 255}}
        rows = pd.DataFrame({"condition": ["clean", "pgd", "pgd"], "largest_change": [0, 4, 3], "error": ""})
        assert loop_bound_gate(rows, conditions).passed is True
        broken = loop_bound_gate(rows.assign(largest_change=[0, 4, 5]), conditions)
        assert (broken.passed, broken.name in UNFAIR) == (False, True)
        assert loop_bound_gate(rows[:1], conditions).word == "not run"
        assert loop_bound_gate(rows.assign(error=["", "", "ValueError: too far"]), conditions).passed is None

    def test_they_fail_when_much_is_left(self) -> None:
        table = lines(("clean", 0, 1.0, 0.7), ("pgd", 0.5, 0.9, 0.6), ("pgd", 1.0, 0.3, 0.1))
        assert [gate.passed for gate in closed_loop_gates(table, 0.1)] == [False, False, None]

    def test_what_a_smaller_attack_broke_is_no_strength_of_one_without_bound(self) -> None:
        table = lines(
            ("clean", 0, 1.0, 0.7), ("pgd", 4 / 255, 0.0, 0.0), ("pgd", 0.5, 0.9, 0.6), ("pgd", 1.0, 0.9, 0.6)
        )
        table = pd.concat([table, lines((WORST, 0.5, 0.0, 0.0), (WORST, 1.0, 0.0, 0.0))], ignore_index=True)
        assert [gate.passed for gate in closed_loop_gates(table, 0.0)] == [False, False, True]

    def test_crashes_are_no_success_of_an_attack(self) -> None:
        table = lines(("clean", 0, 1.0, 0.7), ("pgd", 0.5, 0.0, 0.0), ("pgd", 1.0, 0.0, 0.0)).assign(errors=[0, 3, 3])
        assert [gate.passed for gate in closed_loop_gates(table, 0.0)][:2] == [None, None]

    def test_what_was_not_run_is_said(self) -> None:
        gates = closed_loop_gates(lines(("clean", 0, 1.0, 0.7)), 0.0)
        assert audit_table(gates)[""].tolist() == ["not run", "not run", "not run"]


@pytest.mark.parametrize(("low", "passed"), [(0.1, True), (-0.4, True), (-0.6, None)])
def test_a_gate_passes_only_on_enough_looks(low: float, passed: bool | None) -> None:
    assert told(False, -low, 1.0) is passed
    assert told(True, -low, 1.0) is False


def test_a_claim_needs_every_gate() -> None:
    good, bad, missing = Gate("a", True, ""), Gate("b", np.bool_(False), ""), Gate("c", None, "")  # type: ignore[arg-type]
    assert verdict([good, good]) == "all gates passed"
    assert verdict([good, bad, missing]) == "inconclusive: b; c"


def test_intervals_of_means() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, (2000, 10))
    covered = [low <= 1.0 <= high for _, low, high in map(mean_interval, values)]
    assert 0.93 < np.mean(covered) < 0.97
    assert mean_interval(np.array([3.0])) == (3.0, -np.inf, np.inf)


def test_the_command_ends_with_a_verdict(tmp_path: Path) -> None:
    policy, output = save_tiny(tmp_path / "tiny"), tmp_path / "audit"
    arguments = ["--looks", "4", "--steps", "1", "--draws", "1", "--episodes", "1", "--workers", "0"]
    result = CliRunner().invoke(
        app, ["audit", "--env", BRIEF, "--policy", str(policy), *arguments, "--output", str(output)]
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(output / "audit.csv")
    assert len(table) >= 18
    passed = (table.iloc[:, 1] == "pass").all()
    assert ("all gates passed" in result.output) == passed
    assert ("inconclusive" in result.output) != passed
