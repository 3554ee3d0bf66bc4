"""The items of an audit: what passes, what fails and what cannot be told, on single looks and in whole episodes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mrvlm_sim.evaluation.robustness import WORST
from mrvlm_sim.metrics.attacks.threat import sensor_values

NOTHING, BOUND = "eps 0 is clean, to the bit", "bound and range, on what is fed"
LOOP_BOUND = "bound, in whole episodes"
UNFAIR = (NOTHING, BOUND, LOOP_BOUND)  # gates: where they fail, attacks do more than they may
CONVERGES, TRANSFER = "APGD of twice the steps adds little", "direct over transfer from"
TELLING = 0.5  # of the harm: what looks must be enough to see


class Gate(NamedTuple):
    """One item of the audit; `passed` is None if it was not run, or not on enough to tell."""

    name: str
    passed: bool | None
    figure: str

    @property
    def word(self) -> str:
        if self.passed is None:
            return "open" if self.figure else "not run"
        return "pass" if self.passed else "FAIL"


def told(failed: bool, room: float, harm: float) -> bool | None:
    """Whether a gate passes: not if it failed for sure, nor if the interval leaves room to fail by half of the harm."""
    if failed:
        return False
    return True if room <= TELLING * harm else None


def closed_loop_gates(table: pd.DataFrame, chance: float) -> list[Gate]:
    """What only whole episodes show, from a `robustness_table` of one policy; `chance` is what random actions get."""
    clean = table.loc[table["eps"] == 0, "rate"].max()
    table = table[table["attack"] != WORST]  # which counts what smaller attacks broke, too
    half, everything = (table[table["eps"].between(low, high)] for low, high in ((0.45, 0.55), (0.95, 1.0)))
    small = table[(table["eps"] > 0) & (table["eps"] < 0.45)]
    return [
        _at_most("eps 0.5 leaves chance", half, max(chance, 0.05)),
        _at_most("an attack without bound leaves nothing", everything, 0.0),
        Gate("a persistent attacker", _fails_more(small, clean), _persistent(small) if len(small) else ""),
    ]


def loop_bound_gate(rows: pd.DataFrame, conditions: Mapping[str, Mapping[str, Any]]) -> Gate:
    """Whether no frame of whole episodes was changed by more than it may be."""
    bounds = {name: sensor_values(described["eps"]) for name, described in conditions.items() if described["attack"]}
    attacked = rows[rows["condition"].isin(bounds)]
    if attacked.empty:
        return Gate(LOOP_BOUND, None, "")
    if errors := int((attacked["error"] != "").sum()):
        return Gate(LOOP_BOUND, None, f"{errors} episodes ended in errors")
    excess = int((attacked["largest_change"] - attacked["condition"].map(bounds)).max())
    return Gate(LOOP_BOUND, excess <= 0, f"{excess:+d} sensor values over the bound, {len(attacked)} episodes")


def _fails_more(attacked: pd.DataFrame, clean: float) -> bool | None:
    """Whether who attacks in every look makes episodes fail at least as often as they do by themselves."""
    return bool(attacked["rate"].min() <= clean) if len(attacked) else None


def _at_most(name: str, lines: pd.DataFrame, rate: float) -> Gate:
    """The strongest attack; passes if its interval reaches down so far."""
    if lines.empty:
        return Gate(name, None, "")
    if errors := int(lines["errors"].sum()):
        return Gate(name, None, f"{errors} episodes ended in errors")
    line = lines.loc[lines["rate"].idxmin()]
    return Gate(name, bool(line["low"] <= rate), f"{100 * line['rate']:.0f} % ({line['k']}/{line['n']})")


def _persistent(lines: pd.DataFrame) -> str:
    worst = lines.loc[lines["rate"].idxmin()]
    lasts = f"after {worst['to_failure']:.0f} steps" if np.isfinite(worst["to_failure"]) else "never"
    failures = f"fails in {100 * (1 - worst['rate']):.0f} % of episodes"
    return f"{lasts}; {failures} at {255 * worst['eps']:g}/255 ({worst['attack']})"


def audit_table(gates: Sequence[Gate]) -> pd.DataFrame:
    """One line per gate: pass, FAIL, open where the looks were not enough to tell, or not run."""
    return pd.DataFrame([{"gate": gate.name, "": gate.word, "figure": gate.figure} for gate in gates])


def verdict(gates: Sequence[Gate]) -> str:
    """What may be said of robustness: nothing, unless all gates pass."""
    failed = [gate.name for gate in gates if not gate.passed]
    return "inconclusive: " + "; ".join(failed) if failed else "all gates passed"
