"""What pyramids promise of robustness, and what measurements leave of it: supported, refuted or inconclusive.

A weak attack makes its victim look robust, never fragile; an unfair one may do the reverse, and decides nothing. So
that a policy is robust at all is refuted by any fair attack that breaks it, however weak, and supported by audited
ones only; that it is more robust than another is supported if attacks on it are audited, and refuted if those on the
other are. Differences between rings and by knowledge need the audits of all that take part. Intervals of comparisons
are 95 % together, and so are those of rings (Bonferroni); all others are 95 % each.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.gates import UNFAIR
from mrvlm_sim.evaluation.ledger import OWED
from mrvlm_sim.evaluation.rings import NORMALISATIONS
from mrvlm_sim.evaluation.tables import signed
from mrvlm_sim.metrics.statistics import difference_interval, mean_interval, wilson

MATTERS = 0.05  # of the sizes survived: less is nothing
PROTECTS = 0.2  # of the harm that an attacker does who knows the jitter: to save less is no protection
ROUNDING = 1e-6  # by which attacks differ that are the same
FEWEST = 5  # episodes of which something is said
CENTRE = "attacks do less in the middle"
ROBUST, SIZE = 0.5, 4 / 255  # a robust policy keeps so much of its success at this size
SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"


class Finding(NamedTuple):
    """One promise about one arm, and what became of it."""

    promise: str
    environment: str
    policy: str
    verdict: str
    figure: str


class Effort(NamedTuple):
    """How hard something was attacked, and by what."""

    attack: str
    steps: int
    draws: int


class Audited(NamedTuple):
    """What an audit was of, at which size, and the gates that it did not pass; of its ledger, what who knows the jitter
    does, and what of that is owed to randomness.
    """

    environment: str
    policy: str
    identity: str
    effort: Effort
    eps: float
    failed: tuple[str, ...]
    known: float
    owed: tuple[float, float, float]  # mean, low, high


class Attacked(NamedTuple):
    """A run of `attack`: of every policy and episode, success by size, the worst of all attacks up to that size.

    `survived` has columns policy, suite_seed, episode, eps (0: clean), success, error; `identities` are by policy, and
    so are `efforts`: of attacks that can be audited, those that met all that others had left; and `unmet`: conditions
    that did not.
    """

    environment: str
    survived: pd.DataFrame
    identities: dict[str, str]
    efforts: dict[str, list[Effort]]
    unmet: dict[str, list[str]]

    def gates(self, audits: Sequence[Audited], policy: str) -> list[str]:
        """What speaks against the attacks on a policy."""
        sizes = self.survived["eps"].unique()
        own = [audit for audit in audits if np.isclose(audit.eps, sizes).any()]
        return gates(own, self.environment, policy, self.identities[policy], self.efforts[policy])

    def spared(self, policy: str, other: str) -> list[str]:
        """What speaks against the attacks on a policy beside those on another: what only the other met."""
        missing = [name for name in self.unmet[policy] if name not in self.unmet[other]]
        return [f"{policy} did not meet {', '.join(missing)}"] if missing else []


def gates(
    audits: Sequence[Audited], environment: str, policy: str, identity: str, efforts: Sequence[Effort]
) -> list[str]:
    """What speaks against attacks of those efforts on that policy: gates that failed, or that there is no such audit.

    Together, attacks are no weaker than the best audited of them; but an unfair one spoils what others did.
    """
    own = [audit for audit in audits if (audit.environment, audit.policy) == (environment, policy)]
    if not own:
        return [f"no audit of {policy}"]
    by_attack = {
        audit.effort.attack: [each for each in own if each.effort.attack == audit.effort.attack] for audit in own
    }
    amiss = [_against(audited, identity, efforts) for audited in by_attack.values()]
    return list(dict.fromkeys([*min(amiss, key=len), *unfair([gate for found in amiss for gate in found])]))


def _against(audits: Sequence[Audited], identity: str, efforts: Sequence[Effort]) -> list[str]:
    """What speaks against one attack on one policy, by all audits of it."""
    attack, policy = audits[0].effort.attack, audits[0].policy
    found = [gate for audit in audits for gate in audit.failed]
    if any(audit.identity != identity for audit in audits):
        found.append(f"audit of other weights of {policy}")
    taken = next((effort for effort in efforts if effort.attack == attack), None)
    if taken is None:
        found.append(f"not attacked by {attack}, which the audit of {policy} is of")
    elif any(audit.effort.steps > taken.steps or audit.effort.draws > taken.draws for audit in audits):
        found.append(f"attacked with fewer steps or draws than the audit of {policy}")
    return found


def unfair(failed: Sequence[str]) -> list[str]:
    """Of the gates that failed, those by which attacks do more than they may, and so break what is not fragile."""
    return [gate for gate in failed if gate in UNFAIR]


def judge(low: float, high: float, matters: float, support: Sequence[str], refutation: Sequence[str]) -> str:
    """The verdict on a difference that a promise says to be positive; the rest is what speaks against either."""
    if low > 0:
        return INCONCLUSIVE if support else SUPPORTED
    return REFUTED if high < matters and not refutation else INCONCLUSIVE


def bounded_interval(values: np.ndarray, comparisons: int) -> tuple[float, float, float]:
    """Mean of values in [-1, 1] with its interval, which never collapses: as if -1 and 1 had been seen, too.

    The adjustment of Agresti and Coull (1998) for rates, for differences.
    """
    _, low, high = mean_interval(np.append(values, [-1.0, 1.0]), 1 - 0.05 / comparisons)
    mean = float(values.mean())
    return mean, max(-1.0, min(low, mean)), min(1.0, max(high, mean))


def robust_findings(run: Attacked, audits: Sequence[Audited]) -> list[Finding]:
    """Whether every policy that was attacked by 4/255 keeps half of its success."""
    found, findings = run.survived, list[Finding]()
    for policy in dict.fromkeys(found["policy"]):
        own = found[(found["policy"] == policy) & solved(found, policy)]
        met = own[np.isclose(own["eps"], SIZE)]
        if met.empty:
            continue
        kept, errors = int(met["success"].sum()), int(met["error"].sum())
        low, high = wilson(kept, len(met))
        broken = [f"{errors} episodes ended in errors"] * bool(errors)
        failed = run.gates(audits, policy) + broken
        verdict = judge(low - ROBUST, high - ROBUST, 0.0, failed, broken + unfair(failed))
        figure = f"keeps {kept} of {len(met)} at {255 * SIZE:g}/255 [{100 * low:.0f}, {100 * high:.0f}] %"
        promise = "keeps half of its success"
        findings.append(Finding(promise, run.environment, policy, verdict, with_gates(figure, verdict, failed)))
    return findings


def solved(found: pd.DataFrame, policy: str) -> pd.Series:
    """Which rows are of episodes that a policy solves when clean."""
    clean = found[(found["policy"] == policy) & (found["eps"] == 0) & found["success"]]
    index = pd.MultiIndex.from_frame(found[["suite_seed", "episode"]])
    return pd.Series(index.isin(pd.MultiIndex.from_frame(clean[["suite_seed", "episode"]])), index=found.index)


def more_robust(found: pd.DataFrame, policy: str, reference: str) -> np.ndarray:
    """By how much more of the sizes a policy survives than another, in the episodes that both solve when clean.

    The difference in the share of sizes, -1 to 1, of every such episode.

    Raises:
        UserError: they were not attacked at the same sizes.
    """
    sizes = [
        {f"{255 * eps:g}/255" for eps in found.loc[found["policy"] == name, "eps"]} for name in (policy, reference)
    ]
    if different := sizes[0] ^ sizes[1]:
        raise UserError(
            f"{policy} and {reference} were not attacked at the same sizes: only one of them at "
            f"{', '.join(sorted(different))}; run attack for both"
        )
    both = found[solved(found, policy) & solved(found, reference) & (found["eps"] > 0)]
    ours, theirs = (
        both[both["policy"] == name].groupby(["suite_seed", "episode"])["success"].mean()
        for name in (policy, reference)
    )
    return ours.to_numpy(float) - theirs.to_numpy(float)


def comparison_findings(run: Attacked, reference: str, audits: Sequence[Audited], comparisons: int) -> list[Finding]:
    """Whether every other policy is more robust than the reference.

    Raises:
        UserError: the reference was not attacked, or not as the others were.
    """
    found, environment, findings = run.survived, run.environment, list[Finding]()
    policies = list(dict.fromkeys(found["policy"]))
    if reference not in policies:
        raise UserError(f"{reference} was not attacked in {environment}; take one of {', '.join(policies)}")
    for policy in policies:
        if policy == reference:
            continue
        promise, gains = f"more robust than {reference}", more_robust(found, policy, reference)
        support = run.gates(audits, policy) + run.spared(policy, reference)
        refutation = run.gates(audits, reference) + run.spared(reference, policy)
        pair, broken = (
            found[found["policy"].isin([policy, reference]) & (found["eps"] > 0)],
            unfair(support + refutation),
        )
        if errors := int(pair["error"].sum()):
            broken.append(f"{errors} episodes ended in errors")
        if pair["success"].nunique() == 1:
            broken.append("sizes too small to tell" if pair["success"].all() else "sizes too large to tell")
        if len(gains) < FEWEST:
            figure = f"both solve {len(gains)} of the same episodes when clean: too few to say"
            findings.append(Finding(promise, environment, policy, INCONCLUSIVE, figure))
            continue
        mean, low, high = bounded_interval(gains, comparisons)
        figure = f"{signed(mean, low, high)} % of the sizes survived, {len(gains)} episodes"
        verdict = judge(low, high, MATTERS, support + broken, refutation + broken)
        figure = with_gates(figure, verdict, support + refutation + broken)
        findings.append(Finding(promise, environment, policy, verdict, figure))
    return findings


def centre_findings(
    looks: pd.DataFrame, audits: Sequence[Audited], comparisons: int, control: str | None = None
) -> list[Finding]:
    """Whether attacks do less in the innermost ring than in the outermost, by three ways of making them comparable.

    With a `control`, also whether that holds more of every other policy: what averaging alone does is no promise kept.

    Raises:
        UserError: the control's rings were not measured.
    """
    policies, findings = list(dict.fromkeys(looks["policy"])), list[Finding]()
    if control is not None and control not in policies:
        raise UserError(f"no rings of {control} were measured; take one of {', '.join(policies)}")
    confidence = 1 - 0.05 / comparisons / len(NORMALISATIONS)
    for policy in policies:
        gaps = {name: ring_gaps(looks, policy, name) for name in NORMALISATIONS}
        intervals = {name: mean_interval(gap, confidence) for name, gap in gaps.items()}
        findings.append(_centre(looks, audits, CENTRE, intervals, [policy]))
        if control in (None, policy):
            continue
        more = {
            name: difference_interval(gap, ring_gaps(looks, control, name), confidence) for name, gap in gaps.items()
        }
        findings.append(_centre(looks, audits, f"{CENTRE}, more so than of {control}", more, [policy, control]))
    return findings


def ring_gaps(looks: pd.DataFrame, policy: str, normalisation: str) -> np.ndarray:
    """By how much more attacks do in the outermost than in the innermost ring, of the actions' range, (looks,)."""
    own = looks[(looks["policy"] == policy) & (looks["normalisation"] == normalisation)]
    rings = own.pivot(index="look", columns="inner", values="harm")
    return (rings.iloc[:, -1] - rings.iloc[:, 0]).to_numpy()


def _centre(
    looks: pd.DataFrame,
    audits: Sequence[Audited],
    promise: str,
    intervals: Mapping[str, tuple[float, float, float]],
    policies: Sequence[str],
) -> Finding:
    """A finding on the first of the policies; the audits of all must stand."""
    failed, environment = list[str](), str(looks["environment"].iloc[0])
    for policy in policies:
        first = looks[looks["policy"] == policy].iloc[0]
        effort = Effort(str(first.get("attack", "pgd")), int(first["steps"]), int(first["draws"]))
        failed += gates(audits, environment, policy, str(first["identity"]), [effort])
    verdicts = {judge(low, high, 0.0, failed, failed) for _, low, high in intervals.values()}
    verdict = verdicts.pop() if len(verdicts) == 1 else INCONCLUSIVE
    gaps = "; ".join(f"equal {name} {signed(*interval)} %" for name, interval in intervals.items())
    less = ", less that of the control" if len(policies) > 1 else ""
    figure = with_gates(f"outer less inner ring{less}: {gaps} of the actions' range", verdict, failed)
    return Finding(promise, environment, policies[0], verdict, figure)


def jitter_findings(audits: Sequence[Audited]) -> list[Finding]:
    """Whether not knowing the jitter costs an attacker anything, for arms that have jitter."""
    findings = []
    for audit in audits:
        mean, low, high = audit.owed
        if max(abs(low), abs(high)) < ROUNDING:
            continue
        figure = (
            f"{signed(mean, low, high)} % of the actions' range, of the {100 * audit.known:.1f} % done by who knows it"
        )
        verdict = judge(low, high, PROTECTS * audit.known, audit.failed, audit.failed)
        figure = with_gates(figure, verdict, audit.failed)
        findings.append(Finding(f"jitter protects ({OWED})", audit.environment, audit.policy, verdict, figure))
    return findings


def with_gates(figure: str, verdict: str, failed: Sequence[str]) -> str:
    """A figure, and what speaks against a verdict; against one that was reached nothing does that bears on it."""
    if verdict != INCONCLUSIVE or not failed:
        return figure
    return f"{figure}; not passed: {', '.join(dict.fromkeys(failed))}"
