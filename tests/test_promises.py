"""Verdicts on promises of robustness: what supports them, what refutes them, and what leaves them open."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rl import BRIEF
from tiny import save_tiny
from typer.testing import CliRunner

from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.gates import UNFAIR
from mrvlm_sim.evaluation.promises import (
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Attacked,
    Audited,
    Effort,
    bounded_interval,
    centre_findings,
    comparison_findings,
    gates,
    jitter_findings,
    judge,
    more_robust,
    robust_findings,
)
from mrvlm_sim.evaluation.rings import NORMALISATIONS
from mrvlm_sim.evaluation.robustness import worst_up_to
from mrvlm_sim.evaluation.verdicts import efforts_on, read_attacked, read_audit, read_rings, survival_table, unmet_by

ROBUSTNESS = Path(__file__).parents[1] / "results" / "robustness"
EFFORT = Effort("apgd", 20, 4)


def audit(policy: str, *failed: str, **changes: object) -> Audited:
    return Audited("reach", policy, "w", EFFORT, 4 / 255, failed, 0.2, (0.0, 0.0, 0.0))._replace(**changes)


PASSED = [audit("pyramid"), audit("uniform")]
PGD = EFFORT._replace(attack="pgd")


def against(audits: Sequence[Audited], *efforts: Effort) -> list[str]:
    return gates(audits, "reach", "pyramid", "w", efforts or [EFFORT])


def attacked(**sizes: Sequence[Sequence[int]]) -> Attacked:
    """Of every policy, by size from 0 on, the successes of its episodes; sizes are of 4 / 255 each."""
    survived = pd.DataFrame(
        [
            {
                "policy": name, "suite_seed": 0, "episode": episode, "eps": size * 4 / 255, "success": bool(won),
                "error": False,
            }
            for name, found in sizes.items()
            for size, wins in enumerate(found)
            for episode, won in enumerate(wins)
        ]
    )  # fmt: skip
    return Attacked(
        "reach", survived, dict.fromkeys(sizes, "w"), {name: [EFFORT] for name in sizes}, {name: [] for name in sizes}
    )


class TestJudge:
    @pytest.mark.parametrize(
        ("low", "high", "weak", "verdict"),
        [
            (0.01, 0.2, "", SUPPORTED),
            (0.01, 0.04, "", SUPPORTED),
            (0.01, 0.2, "on it", INCONCLUSIVE),
            (0.01, 0.2, "on the other", SUPPORTED),
            (-0.01, 0.2, "", INCONCLUSIVE),
            (-0.2, 0.04, "", REFUTED),
            (-0.2, 0.04, "on it", REFUTED),
            (-0.2, 0.04, "on the other", INCONCLUSIVE),
        ],
    )
    def test_what_supports_refutes_or_leaves_open(self, low: float, high: float, weak: str, verdict: str) -> None:
        assert (
            judge(low, high, 0.05, ["more steps"] * (weak == "on it"), ["more"] * (weak == "on the other")) == verdict
        )

    @pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
    def test_equal_values_are_no_certainty(self, value: float) -> None:
        mean, low, high = bounded_interval(np.full(6, value), 1)
        assert mean == value
        assert high - low > 0.5
        narrow = bounded_interval(np.full(200, value), 1)
        assert narrow[2] - narrow[1] < 0.1

    def test_many_comparisons_widen(self) -> None:
        one, ten = (bounded_interval(np.tile([0.0, 0.4, 0.2, 0.2], 5), count) for count in (1, 10))
        assert -1 < ten[1] < one[1] < one[2] < ten[2] < 1

    def test_no_difference_is_beyond_all(self) -> None:
        assert bounded_interval(np.array([1.0, 1.0, 0.9]), 10)[1:] == (-1.0, 1.0)


class TestAudits:
    def test_they_must_be_of_this_policy_these_weights_and_no_stronger_attacks(self) -> None:
        assert against(PASSED) == []
        assert gates(PASSED, "pick_place", "pyramid", "w", [EFFORT]) == ["no audit of pyramid"]
        assert gates(PASSED, "reach", "pyramid", "other", [EFFORT]) == ["audit of other weights of pyramid"]
        for less in ({"steps": 19}, {"draws": 3}):
            assert "fewer steps or draws" in against(PASSED, EFFORT._replace(**less))[0]

    def test_one_that_passed_does_not_hide_one_that_failed(self) -> None:
        both = [audit("pyramid", "more steps"), audit("pyramid")]
        assert against(both) == against(both[::-1]) == ["more steps"]

    def test_they_must_be_of_an_attack_that_was_made(self) -> None:
        assert against(PASSED, PGD) == ["not attacked by apgd, which the audit of pyramid is of"]
        assert against(PASSED, PGD, EFFORT) == []

    def test_the_best_of_all_audited_attacks_counts_but_an_unfair_one_spoils_it(self) -> None:
        weak = audit("pyramid", "more steps", effort=PGD)
        assert against([weak, *PASSED], PGD, EFFORT) == []
        assert against([weak, *PASSED], PGD) == ["more steps"]
        unfair = audit("pyramid", UNFAIR[0], effort=PGD)
        assert against([unfair, *PASSED], PGD, EFFORT) == [UNFAIR[0]]


class TestRobust:
    def test_a_weak_attack_that_breaks_it_has_broken_it(self) -> None:
        run = attacked(pyramid=[[1] * 12, [0] * 11 + [1]])
        assert robust_findings(run, [])[0].verdict == REFUTED
        kept = attacked(pyramid=[[1] * 12, [1] * 12])
        assert robust_findings(kept, [])[0].verdict == INCONCLUSIVE
        assert robust_findings(kept, PASSED)[0].verdict == SUPPORTED

    def test_of_other_sizes_nothing_is_said(self) -> None:
        run = attacked(pyramid=[[1] * 12, [1] * 12])
        smaller = run._replace(survived=run.survived.assign(eps=run.survived["eps"] / 4))
        assert robust_findings(smaller, PASSED) == []

    def test_audits_of_other_sizes_do_not_count(self) -> None:
        finding = robust_findings(attacked(pyramid=[[1] * 12, [1] * 12]), [audit("pyramid", eps=8 / 255)])[0]
        assert (finding.verdict, "no audit of pyramid" in finding.figure) == (INCONCLUSIVE, True)

    def test_only_what_was_solved_can_be_kept(self) -> None:
        finding = robust_findings(attacked(pyramid=[[1, 0, 1, 0], [1, 0, 0, 1]]), PASSED)[0]
        assert finding.figure.startswith("keeps 1 of 2 at 4/255")

    def test_errors_break_nothing(self) -> None:
        run = attacked(pyramid=[[1] * 12, [0] * 12])
        run.survived.loc[run.survived["eps"] > 0, "error"] = True
        assert robust_findings(run, PASSED)[0].verdict == INCONCLUSIVE


class TestMoreRobust:
    def test_it_is_of_the_episodes_that_both_solve(self) -> None:
        uniform = [[1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
        run = attacked(pyramid=[[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 1]], uniform=uniform)
        assert more_robust(run.survived, "pyramid", "uniform").tolist() == [1, 0]

    def test_what_was_attacked_otherwise_is_not_compared(self) -> None:
        run = attacked(pyramid=[[1] * 6, [1] * 6], uniform=[[1] * 6, [1] * 6, [0] * 6])
        with pytest.raises(UserError, match=r"not attacked at the same sizes: only one of them at 8/255"):
            comparison_findings(run, "uniform", PASSED, 1)

    def test_episodes_that_only_one_of_them_met_are_left_out(self) -> None:
        run = attacked(pyramid=[[1] * 30, [1] * 30], uniform=[[1] * 20, [0] * 20])
        assert more_robust(run.survived, "pyramid", "uniform").tolist() == [1] * 20

    def verdict(self, run: Attacked, audits: Sequence[Audited] = PASSED, reference: str = "uniform") -> tuple[str, str]:
        finding = comparison_findings(run, reference, audits, 1)[0]
        return finding.verdict, finding.figure

    def test_the_one_that_holds_out_longer_must_be_audited(self) -> None:
        """A weak attack on the other could only hide that it is more fragile still."""
        run = attacked(pyramid=[[1] * 20, [1] * 20], uniform=[[1] * 20, [0] * 19 + [1]])
        for reference, verdict in (("uniform", SUPPORTED), ("pyramid", REFUTED)):
            assert self.verdict(run, reference=reference)[0] == verdict
            found, figure = self.verdict(run, [audit("pyramid")], reference)
            assert (found, "no audit" in figure) == (verdict, False)
            found, figure = self.verdict(run, [audit("uniform")], reference)
            assert (found, "no audit of pyramid" in figure) == (INCONCLUSIVE, True)

    def test_the_one_that_holds_out_longer_must_have_met_all_that_the_other_met(self) -> None:
        run = attacked(pyramid=[[1] * 20, [1] * 20], uniform=[[1] * 20, [0] * 19 + [1]])
        for reference, verdict in (("uniform", SUPPORTED), ("pyramid", REFUTED)):
            spared = run._replace(unmet={"pyramid": [], "uniform": ["apgd 4/255"]})
            assert self.verdict(spared, reference=reference)[0] == verdict
            spared = run._replace(unmet={"pyramid": ["apgd 4/255"], "uniform": []})
            found, figure = self.verdict(spared, reference=reference)
            assert (found, "pyramid did not meet apgd 4/255" in figure) == (INCONCLUSIVE, True)
            both = run._replace(unmet={"pyramid": ["apgd 4/255"], "uniform": ["apgd 4/255"]})
            assert self.verdict(both, reference=reference)[0] == verdict

    @pytest.mark.parametrize("unfair", UNFAIR)
    def test_attacks_that_do_more_than_they_may_decide_nothing(self, unfair: str) -> None:
        run = attacked(pyramid=[[1] * 20, [1] * 20], uniform=[[1] * 20, [0] * 19 + [1]])
        audits = [audit("pyramid"), audit("uniform", unfair)]
        assert {self.verdict(run, audits, reference)[0] for reference in ("uniform", "pyramid")} == {INCONCLUSIVE}
        assert [finding.verdict for finding in robust_findings(run, audits)] == [SUPPORTED, INCONCLUSIVE]

    @pytest.mark.parametrize(("left", "said"), [(0, "sizes too large to tell"), (1, "sizes too small to tell")])
    def test_floor_and_ceiling_say_nothing(self, left: int, said: str) -> None:
        run = attacked(pyramid=[[1] * 20, [left] * 20], uniform=[[1] * 20, [left] * 20])
        verdict, figure = self.verdict(run)
        assert (verdict, said in figure) == (INCONCLUSIVE, True)

    def test_an_error_of_the_reference_is_no_support(self) -> None:
        run = attacked(pyramid=[[1] * 20, [1] * 20], uniform=[[1] * 20, [0] * 19 + [1]])
        run.survived.loc[(run.survived["policy"] == "uniform") & (run.survived["eps"] > 0), "error"] = True
        verdict, figure = self.verdict(run)
        assert (verdict, "20 episodes ended in errors" in figure) == (INCONCLUSIVE, True)

    def test_of_too_few_nothing_is_said(self) -> None:
        verdict, figure = self.verdict(attacked(pyramid=[[1, 0], [1, 1]], uniform=[[1, 1], [0, 0]]))
        assert (verdict, "both solve 1 of the same" in figure) == (INCONCLUSIVE, True)

    def test_a_reference_that_was_not_attacked(self) -> None:
        with pytest.raises(UserError, match="cross was not attacked in reach"):
            comparison_findings(attacked(pyramid=[[1], [1]]), "cross", PASSED, 1)

    def test_counts(self) -> None:
        run = attacked(pyramid=[[1, 1, 0], [1, 0, 0]])
        table = survival_table(run.survived.assign(environment="reach"))
        assert table[["k", "n"]].to_numpy().tolist() == [[2, 3], [1, 3]]


class TestCentre:
    def rings(self, *outer_less_inner: float, policy: str = "pyramid") -> pd.DataFrame:
        """Harms of looks in two rings, by normalisation."""
        rng = np.random.default_rng(0)
        return pd.DataFrame(
            [
                {
                    "environment": "reach", "policy": policy, "normalisation": name, "inner": inner, "look": look,
                    "harm": 0.3 + (gap if inner else 0) + 0.01 * rng.normal(), "identity": "w",
                    "attack": "apgd", "steps": 20, "draws": 4,
                }
                for name, gap in zip(NORMALISATIONS, outer_less_inner, strict=True)
                for inner in (0.0, 0.5)
                for look in range(8)
            ]
        )  # fmt: skip

    def test_all_ways_of_comparing_must_agree(self) -> None:
        assert centre_findings(self.rings(0.1, 0.2, 0.1), PASSED, 1)[0].verdict == SUPPORTED
        assert centre_findings(self.rings(-0.1, -0.2, -0.1), PASSED, 1)[0].verdict == REFUTED
        finding = centre_findings(self.rings(0.1, -0.1, 0.1), PASSED, 1)[0]
        assert finding.verdict == INCONCLUSIVE
        assert "solid angle -" in finding.figure

    def test_a_policy_is_held_to_what_averaging_alone_does(self) -> None:
        def found(gap: float, controls: float) -> list[tuple[str, str]]:
            control = self.rings(controls, controls, controls, policy="uniform")
            looks = pd.concat([self.rings(gap, gap, gap), control])
            findings = centre_findings(looks, PASSED, 3, control="uniform")
            return [(each.promise, each.verdict) for each in findings if each.policy == "pyramid"]

        own = ("attacks do less in the middle", SUPPORTED)
        assert found(0.2, 0.1) == [own, ("attacks do less in the middle, more so than of uniform", SUPPORTED)]
        assert found(0.1, 0.2) == [own, ("attacks do less in the middle, more so than of uniform", REFUTED)]
        assert found(0.1, 0.1) == [own, ("attacks do less in the middle, more so than of uniform", INCONCLUSIVE)]

    def test_a_control_that_was_not_measured(self) -> None:
        with pytest.raises(UserError, match="no rings of uniform were measured; take one of pyramid"):
            centre_findings(self.rings(0.1, 0.1, 0.1), PASSED, 1, control="uniform")

    def test_rings_of_another_attack_are_not_what_was_audited(self) -> None:
        finding = centre_findings(self.rings(0.1, 0.1, 0.1).assign(attack="pgd"), PASSED, 1)[0]
        assert (finding.verdict, "not attacked by apgd" in finding.figure) == (INCONCLUSIVE, True)

    def test_without_an_audit_nothing_is_said(self) -> None:
        for gap in (0.1, -0.1):
            finding = centre_findings(self.rings(gap, gap, gap), [], 1)[0]
            assert (finding.verdict, "no audit of pyramid" in finding.figure) == (INCONCLUSIVE, True)


def test_jitter_protects_those_who_have_it() -> None:
    found = jitter_findings([audit("uniform", owed=(2e-8, -1e-8, 4e-8)), audit("pyramid", owed=(0.1, 0.08, 0.12))])
    assert [(finding.policy, finding.verdict) for finding in found] == [("pyramid", SUPPORTED)]


@pytest.mark.parametrize(("known", "verdict"), [(0.2, REFUTED), (0.1, INCONCLUSIVE)])
def test_jitter_protects_by_a_share_of_what_is_done_without(known: float, verdict: str) -> None:
    found = jitter_findings([audit("pyramid", known=known, owed=(0.01, -0.01, 0.03))])
    assert [finding.verdict for finding in found] == [verdict]


def test_folders_without_what_is_asked_of_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no audit in .*; make one: mrvlm-sim audit"):
        read_audit(tmp_path)
    with pytest.raises(UserError, match=r"no rings in .*; make them: mrvlm-sim rings"):
        read_rings(tmp_path)
    with pytest.raises(UserError):
        read_attacked(tmp_path)


def test_only_attacks_that_met_all_that_others_left_count(tmp_path: Path) -> None:
    """By policy: pgd met all of both, apgd broke one of one policy and left out what was broken before."""
    attacks = {"pgd 4/255": (3, {}), "apgd 4/255": (9, {"draws": 2}), "apgd known 4/255": (1, {"knowledge": "known"})}
    conditions = {
        name: {"name": name, "source": "sensor", "attack": name.split()[0], "eps": 4 / 255, "steps": steps, **more}
        for name, (steps, more) in attacks.items()
    }
    met = {"one": {"pgd 4/255": [1, 0, 1], "apgd 4/255": [0, None, 1]}, "two": {"pgd 4/255": [1, 0, 1]}}
    rows = pd.DataFrame(
        [
            {"policy": policy, "condition": name, "suite_seed": 0, "episode": episode, "success": bool(won),
             "error": "", "action_deviation": 0.0, "steps": 9, "forwards": 1, "backwards": 1, "size": 4 / 255}
            for policy, found in met.items()
            for name, wins in {**found, "apgd known 4/255": [1, 1, 1]}.items()
            for episode, won in enumerate(wins)
            if won is not None
        ]
    )  # fmt: skip
    found, unmet = {}, {}
    for policy, own in rows.groupby("policy"):
        worst = {4 / 255: worst_up_to(own, 4 / 255)}
        found[policy], unmet[policy] = efforts_on(own, worst, conditions), unmet_by(own, worst, conditions)
    assert found == {"one": [Effort("pgd", 3, 4), Effort("apgd", 9, 2)], "two": [Effort("pgd", 3, 4)]}
    assert unmet == {"one": [], "two": ["apgd 4/255"]}


@pytest.mark.parametrize("name", ["reach-adversary", "reach-hardened-stronger"])
def test_attacks_by_adversaries_are_read_as_all_others(name: str) -> None:
    found = read_attacked(ROBUSTNESS / name)
    assert set(found.unmet) == set(found.efforts) == set(found.survived["policy"])


def test_a_run_that_decides_nothing_says_so(tmp_path: Path) -> None:
    run = str(ROBUSTNESS / "reach-adversary")
    asked = ["verdicts", run, "--reference", "generalist/uniform-49", "--output", str(tmp_path)]
    assert "nothing to judge: attack by 4/255" in CliRunner().invoke(app, asked, catch_exceptions=False).output


@pytest.mark.slow
def test_the_commands_together(tmp_path: Path) -> None:
    """attack, audit and rings, and the verdicts on what they found."""
    first, second = (str(save_tiny(tmp_path / name)) for name in ("first", "second"))
    few = ["--steps", "1", "--draws", "1"]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.output

    runs = {name: str(tmp_path / name) for name in ("attacked", "audit", "rings", "robustness")}
    both = ["--env", BRIEF, "--policy", first, "--policy", second, "--attack", "apgd", "--attack", "noise"]
    sizes = ["--eps", "8/255", "--eps", "16/255", "--episodes", "2", "--workers", "0"]
    run("attack", *both, *sizes, *few, "--output", runs["attacked"])
    one = ["--env", BRIEF, "--policy", first, *few]
    run("audit", *one, "--looks", "4", "--episodes", "1", "--workers", "0", "--output", runs["audit"])
    run("rings", *one, "--looks", "2", "--output", runs["rings"])
    given = ["--reference", "second", "--audit", runs["audit"], "--rings", runs["rings"]]
    run("verdicts", runs["attacked"], *given, "--output", runs["robustness"])
    found = pd.read_csv(tmp_path / "robustness" / "verdicts.csv")
    promises = found["promise"].tolist()
    assert promises[:3] == [
        "more robust than second",
        "attacks do less in the middle",
        "jitter protects (owed to randomness)",
    ]
    assert set(found["policy"]) == {"first"}, "neither solves an episode, so neither can keep it"
    for said in ("other weights", "not attacked by"):
        assert said not in " ".join(found["figure"])
    assert set(found["verdict"]) <= {SUPPORTED, REFUTED, INCONCLUSIVE}
    for name, said in (("first", ["first", "second"]), ("second", ["second"])):
        run("verdicts", runs["attacked"], "--reference", "second", "--policy", name, "--output", runs["robustness"])
        assert pd.read_csv(tmp_path / "robustness" / "survival.csv")["policy"].unique().tolist() == said
    misspelt = CliRunner().invoke(app, ["verdicts", runs["attacked"], "--reference", "second", "--policy", "frist"])
    assert "Did you mean 'first'" in str(misspelt.exception)
    alone = CliRunner().invoke(app, ["verdicts", runs["attacked"], "--reference", "second", "--control", "first"])
    assert "give --rings, or leave it out" in str(alone.exception)
    other = CliRunner().invoke(app, ["audit", *one, "--attack", "pgd", "--looks", "4", "--output", runs["audit"]])
    assert "holds an audit of apgd; give another --output, or take --attack apgd" in str(other.exception)
    run("verdicts", runs["attacked"], *given, "--output", runs["robustness"])
    survived = pd.read_csv(tmp_path / "robustness" / "survival.csv")
    assert len(survived) == 2 * 3
    assert (survived["n"] == 2).all()
    assert (tmp_path / "robustness" / "survival.png").read_bytes().startswith(b"\x89PNG")
