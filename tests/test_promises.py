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
from mrvlm_sim.evaluation.promises import (
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    centre_findings,
    judge,
    more_robust,
    read_audit,
    read_rings,
    robustness_findings,
    survival_table,
)
from mrvlm_sim.evaluation.rings import NORMALISATIONS

PASSED = {("reach", "pyramid"): [], ("reach", "uniform"): []}


def survived(**sizes: Sequence[Sequence[int]]) -> pd.DataFrame:
    """Of every policy, by size from 0 on, the successes of its episodes."""
    return pd.DataFrame(
        [
            {
                "environment": "reach", "policy": name, "suite_seed": 0, "episode": episode, "eps": size,
                "success": bool(won),
            }
            for name, found in sizes.items()
            for size, wins in enumerate(found)
            for episode, won in enumerate(wins)
        ]
    )  # fmt: skip


class TestJudge:
    @pytest.mark.parametrize(
        ("low", "high", "gates", "verdict"),
        [
            (0.01, 0.2, [], SUPPORTED),
            (0.01, 0.2, ["more steps"], INCONCLUSIVE),
            (-0.01, 0.2, [], INCONCLUSIVE),
            (-0.2, 0.04, [], REFUTED),
            (-0.2, 0.04, ["more steps"], REFUTED),
            (0.01, 0.04, [], REFUTED),
        ],
    )
    def test_what_supports_refutes_or_leaves_open(
        self, low: float, high: float, gates: list[str], verdict: str
    ) -> None:
        assert judge(low, high, 0.05, gates) == verdict


class TestMoreRobust:
    def test_it_is_of_the_episodes_that_both_solve(self) -> None:
        uniform = [[1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
        found = survived(pyramid=[[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 1]], uniform=uniform)
        assert more_robust(found, "pyramid", "uniform").tolist() == [1, 0]

    def test_of_too_few_nothing_is_said(self) -> None:
        found = survived(pyramid=[[1, 0], [1, 1]], uniform=[[1, 1], [0, 0]])
        finding = robustness_findings(found, "uniform", PASSED)[0]
        assert (finding.verdict, "both solve 1 of the same" in finding.figure) == (INCONCLUSIVE, True)

    def test_the_verdict_needs_the_audits_of_both(self) -> None:
        found = survived(pyramid=[[1] * 12, [1] * 12], uniform=[[1] * 12, [0] * 11 + [1]])
        assert robustness_findings(found, "uniform", PASSED)[0].verdict == SUPPORTED
        finding = robustness_findings(found, "uniform", {("reach", "pyramid"): []})[0]
        assert finding.verdict == INCONCLUSIVE
        assert "no audit of uniform" in finding.figure
        finding = robustness_findings(found, "pyramid", {})[0]
        assert (finding.policy, finding.verdict) == ("uniform", REFUTED)

    def test_a_reference_that_was_not_attacked(self) -> None:
        with pytest.raises(UserError, match="cross was not attacked in reach"):
            robustness_findings(survived(pyramid=[[1], [1]]), "cross", PASSED)

    def test_counts(self) -> None:
        table = survival_table(survived(pyramid=[[1, 1, 0], [1, 0, 0]]))
        assert table[["k", "n"]].to_numpy().tolist() == [[2, 3], [1, 3]]


class TestCentre:
    def rings(self, *outer_less_inner: float) -> pd.DataFrame:
        """Harms of looks in two rings, by normalisation."""
        rng = np.random.default_rng(0)
        return pd.DataFrame(
            [
                {
                    "environment": "reach", "policy": "pyramid", "normalisation": name, "inner": inner, "look": look,
                    "harm": 0.3 + (gap if inner else 0) + 0.01 * rng.normal(),
                }
                for name, gap in zip(NORMALISATIONS, outer_less_inner, strict=True)
                for inner in (0.0, 0.5)
                for look in range(8)
            ]
        )  # fmt: skip

    def test_all_ways_of_comparing_must_agree(self) -> None:
        assert centre_findings(self.rings(0.1, 0.2, 0.1), PASSED)[0].verdict == SUPPORTED
        assert centre_findings(self.rings(-0.1, -0.2, -0.1), PASSED)[0].verdict == REFUTED
        finding = centre_findings(self.rings(0.1, -0.1, 0.1), PASSED)[0]
        assert finding.verdict == INCONCLUSIVE
        assert "solid angle -" in finding.figure

    def test_without_an_audit_nothing_is_supported(self) -> None:
        finding = centre_findings(self.rings(0.1, 0.2, 0.1), {})[0]
        assert (finding.verdict, "no audit of pyramid" in finding.figure) == (INCONCLUSIVE, True)


def test_folders_without_what_is_asked_of_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no audit in .*; make one: mrvlm-sim audit"):
        read_audit(tmp_path)
    with pytest.raises(UserError, match=r"no rings in .*; make them: mrvlm-sim rings"):
        read_rings(tmp_path)


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
    both = ["--env", BRIEF, "--policy", first, "--policy", second, "--attack", "pgd", "--attack", "noise"]
    sizes = ["--eps", "8/255", "--eps", "16/255", "--episodes", "2", "--workers", "0"]
    run("attack", *both, *sizes, *few, "--output", runs["attacked"])
    one = ["--env", BRIEF, "--policy", first, *few]
    run("audit", *one, "--looks", "4", "--episodes", "1", "--workers", "0", "--output", runs["audit"])
    run("rings", *one, "--looks", "2", "--output", runs["rings"])
    given = ["--reference", "second", "--audit", runs["audit"], "--rings", runs["rings"]]
    run("verdicts", runs["attacked"], *given, "--output", runs["robustness"])
    found = pd.read_csv(tmp_path / "robustness" / "verdicts.csv")
    assert found["promise"].tolist() == ["more robust than second", "most robust near the centre", "jitter protects"]
    assert set(found["policy"]) == {"first"}
    assert set(found["verdict"]) <= {SUPPORTED, REFUTED, INCONCLUSIVE}
    survived = pd.read_csv(tmp_path / "robustness" / "survival.csv")
    assert len(survived) == 2 * 3
    assert (survived["n"] == 2).all()
    assert (tmp_path / "robustness" / "survival.png").read_bytes().startswith(b"\x89PNG")
