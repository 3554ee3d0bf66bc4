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
from mrvlm_sim.evaluation.audit import JUDGED, Audit, Gate, audit_table, closed_loop_gates, verdict
from mrvlm_sim.evaluation.ledger import OWED, ledger, pretty_ledger
from mrvlm_sim.evaluation.moments import sample_moments
from mrvlm_sim.evaluation.robustness import WORST
from mrvlm_sim.metrics.attacks import Threat
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
        gates = audited(tiny, attack=attack).run([])
        assert [gate.name for gate in gates if not gate.passed] == []
        assert f"{attack.upper()} over FGSM" in [gate.name for gate in gates]
        levels = [gate for gate in gates if gate.name.startswith("gradients reach level")]
        assert len(levels) == 3

    def test_a_defence_that_only_hides_its_gradients_is_found_out(self, tiny: TrainedPolicy) -> None:
        hiding = Hiding(tiny.card, tiny.network, tiny.device)
        gates = {gate.name: gate.passed for gate in audited(hiding).run([])}
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
        ("gain", "passed"), [([0.02] * 6, False), ([0.0] * 6, True), ([0.3, -0.2, 0.2, -0.3, 0.3, -0.1], True)]
    )
    def test_more_draws_may_do_no_more_but_by_luck(
        self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch, gain: list[float], passed: bool
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

    def test_without_jitter_nothing_is_owed_to_it(self, tiny: TrainedPolicy) -> None:
        still = TrainedPolicy(tiny.card.with_eyes("still"), tiny.network, tiny.device)
        table = ledger(audited(still, 4)).set_index("attacker")
        assert table.loc[OWED, ["harm", "low", "high"]].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


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
    return pd.DataFrame(rates, columns=columns).assign(k=1, n=10, errors=0)


class TestWholeEpisodes:
    def test_they_pass_when_nothing_is_left(self) -> None:
        table = lines(
            ("clean", 0, 1.0, 0.7), ("pgd", 4 / 255, 0.4, 0.2), ("pgd", 0.5, 0.0, 0.0), ("pgd", 1.0, 0.0, 0.0)
        )
        gates = closed_loop_gates(table, 0.0)
        assert [gate.passed for gate in gates] == [True, True, True]
        assert "fails in 60 % of episodes at 4/255" in gates[-1].figure

    def test_they_fail_when_much_is_left(self) -> None:
        table = lines(("clean", 0, 1.0, 0.7), ("pgd", 0.5, 0.9, 0.6), ("pgd", 1.0, 0.3, 0.1))
        assert [gate.passed for gate in closed_loop_gates(table, 0.1)] == [False, False, False]

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
        assert [gate.passed for gate in gates] == [None, None, False]
        assert audit_table(gates)[""].tolist() == ["not run", "not run", "FAIL"]


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
