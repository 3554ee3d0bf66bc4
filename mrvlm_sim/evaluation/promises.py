"""What pyramids promise of robustness, and what measurements leave of it: supported, refuted or inconclusive.

A promise is supported if the 95 % interval of what was measured lies above 0 and every audit of the attacks that it
rests on has passed: an attack that is too weak makes anything look robust. It is refuted if the interval's upper end is
below what would matter, whatever the audits say: a weak attack that succeeds has succeeded. Else it is inconclusive.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.ledger import OWED
from mrvlm_sim.evaluation.rings import LOOKS, NORMALISATIONS
from mrvlm_sim.evaluation.robustness import worst_of
from mrvlm_sim.evaluation.store import read_episodes, read_parts
from mrvlm_sim.metrics.statistics import mean_interval, wilson
from mrvlm_sim.paths import make_parent, write_atomically

Audits = Mapping[tuple[str, str], Sequence[str]]  # by environment and policy, the gates that did not pass
MATTERS = 0.05  # of success, or of the actions' range: less is nothing
FEWEST = 5  # episodes of which something is said
SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"


class Finding(NamedTuple):
    """One promise about one arm, and what became of it."""

    promise: str
    environment: str
    policy: str
    verdict: str
    figure: str


def judge(low: float, high: float, matters: float, audited: Sequence[str]) -> str:
    """The verdict on a quantity that a promise says to be positive; `audited` names the gates that did not pass."""
    if high < matters:
        return REFUTED
    return SUPPORTED if low > 0 and not audited else INCONCLUSIVE


def survival(folder: Path) -> pd.DataFrame:
    """Of every policy and episode of a run of `attack`: success by size, the worst of all attacks up to that size.

    Size 0 is the clean episode. Columns: environment, policy, suite_seed, episode, eps, success.
    """
    rows, conditions = read_episodes(folder), read_parts(folder, "condition")
    attacked = rows[rows["condition"].map(lambda name: conditions[name]["attack"] is not None)]
    clean = rows[rows["condition"].map(lambda name: conditions[name]["attack"] is None)]
    sizes = attacked["condition"].map(lambda name: conditions[name]["eps"])
    found = [clean.assign(eps=0.0)]
    for policy in dict.fromkeys(attacked["policy"]):
        own = attacked["policy"] == policy
        for size in sorted(sizes[own].unique()):
            found.append(worst_of(attacked[own & (sizes <= size)]).assign(policy=policy, eps=size))
    columns = ["policy", "suite_seed", "episode", "eps", "success"]
    together = pd.concat([part[columns] for part in found], ignore_index=True)
    return together.assign(environment=str(rows["environment"].iloc[0]))


def more_robust(found: pd.DataFrame, policy: str, reference: str) -> np.ndarray:
    """By how much more of the sizes a policy survives than another, in the episodes that both solve when clean.

    The difference in the share of sizes, -1 to 1, of every such episode.
    """
    shares = []
    for name in (policy, reference):
        own = found[found["policy"] == name].set_index(["suite_seed", "episode"])
        solved = own.index[(own["eps"] == 0) & own["success"].astype(bool)]
        attacked = own[own["eps"] > 0]
        shares.append(attacked[attacked.index.isin(solved)].groupby(level=[0, 1])["success"].mean())
    ours, theirs = shares[0].align(shares[1], join="inner")
    return ours.to_numpy(float) - theirs.to_numpy(float)


def robustness_findings(found: pd.DataFrame, reference: str, audits: Audits) -> list[Finding]:
    """Whether every other policy is more robust than the reference."""
    environment, findings = str(found["environment"].iloc[0]), []
    if reference not in set(found["policy"]):
        raise UserError(f"{reference} was not attacked in {environment}; take one of {', '.join(set(found['policy']))}")
    for policy in dict.fromkeys(found["policy"]):
        if policy == reference:
            continue
        promise, gains = f"more robust than {reference}", more_robust(found, policy, reference)
        failed = [
            gate for name in (policy, reference) for gate in audits.get((environment, name), [f"no audit of {name}"])
        ]
        if len(gains) < FEWEST:
            figure = f"both solve {len(gains)} of the same episodes when clean: too few to say"
            findings.append(Finding(promise, environment, policy, INCONCLUSIVE, figure))
            continue
        mean, low, high = mean_interval(gains)
        figure = (
            f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] % of the sizes survived, {len(gains)} episodes"
        )
        verdict = judge(low, high, MATTERS, failed)
        findings.append(Finding(promise, environment, policy, verdict, _with_gates(figure, failed)))
    return findings


def centre_findings(looks: pd.DataFrame, audits: Audits) -> list[Finding]:
    """Whether attacks do less in the innermost ring than in the outermost, by three ways of making them comparable."""
    findings, environment = [], str(looks["environment"].iloc[0])
    for policy in dict.fromkeys(looks["policy"]):
        intervals = {}
        for normalisation in NORMALISATIONS:
            own = looks[(looks["policy"] == policy) & (looks["normalisation"] == normalisation)]
            rings = own.pivot(index="look", columns="inner", values="harm")
            intervals[normalisation] = mean_interval((rings.iloc[:, -1] - rings.iloc[:, 0]).to_numpy())
        failed = audits.get((environment, policy), [f"no audit of {policy}"])
        verdicts = {judge(low, high, 0.0, failed) for _, low, high in intervals.values()}
        figure = "; ".join(
            f"{name} {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            for name, (mean, low, high) in intervals.items()
        )
        verdict = verdicts.pop() if len(verdicts) == 1 else INCONCLUSIVE
        figure = _with_gates(f"outer less inner: {figure}", failed)
        findings.append(Finding("most robust near the centre", environment, policy, verdict, figure))
    return findings


def jitter_finding(folder: Path) -> Finding:
    """Whether not knowing the jitter costs an attacker anything, from the folder of an audit."""
    environment, policy, failed = read_audit(folder)
    table = pd.read_csv(folder / "ledger.csv").set_index("attacker")
    mean, low, high = table.loc[OWED, ["harm", "low", "high"]].astype(float)
    figure = f"knowing it adds {100 * mean:.2f} [{100 * low:.2f}, {100 * high:.2f}] % of the actions' range"
    verdict = judge(low, high, MATTERS, failed)
    return Finding("jitter protects", environment, policy, verdict, _with_gates(figure, failed))


def read_audit(folder: Path) -> tuple[str, str, list[str]]:
    """Environment and policy of an audit, and the gates that it did not pass.

    Raises:
        UserError: the folder holds no audit.
    """
    if not (folder / "audit.csv").is_file():
        raise UserError(f"no audit in {folder}; make one: mrvlm-sim audit --env ENV --policy POLICY --output {folder}")
    rows, gates = read_episodes(folder), pd.read_csv(folder / "audit.csv", keep_default_na=False)
    policy = next(name for name in dict.fromkeys(rows["policy"]) if name != "random")
    failed = gates.loc[gates.iloc[:, 1] != "pass", "gate"].tolist()
    return str(rows["environment"].iloc[0]), policy, failed


def read_rings(folder: Path) -> pd.DataFrame:
    """What `rings` found in every look.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / LOOKS).is_file():
        raise UserError(f"no rings in {folder}; make them: mrvlm-sim rings --env ENV --policy POLICY --output {folder}")
    return pd.read_csv(folder / LOOKS)


def _with_gates(figure: str, failed: Sequence[str]) -> str:
    return f"{figure}; not passed: {', '.join(dict.fromkeys(failed))}" if failed else figure


def write_verdicts(
    folder: Path, attacked: Sequence[Path], audits: Sequence[Path], rings: Sequence[Path], reference: str
) -> pd.DataFrame:
    """Write `verdicts.csv`, `verdicts.md`, `survival.csv` and `survival.png`; returns the verdicts.

    Raises:
        UserError: a folder does not hold what it is given for, or the reference was not attacked.
    """
    found = [survival(run) for run in attacked]
    failed: dict[tuple[str, str], Sequence[str]] = {}
    for audit in audits:
        environment, policy, gates = read_audit(audit)
        failed[environment, policy] = gates
    findings = [finding for each in found for finding in robustness_findings(each, reference, failed)]
    findings += [finding for ring in rings for finding in centre_findings(read_rings(ring), failed)]
    findings += [jitter_finding(audit) for audit in audits]
    table, survived = pd.DataFrame(findings), pd.concat(found, ignore_index=True)
    make_parent(folder / "verdicts.csv")
    write_atomically(folder / "verdicts.csv", table.to_csv(index=False))
    write_atomically(folder / "verdicts.md", table.to_markdown(index=False) + "\n")
    write_atomically(folder / "survival.csv", survival_table(survived).to_csv(index=False))
    draw_survival(survived, folder / "survival.png")
    return table


def survival_table(found: pd.DataFrame) -> pd.DataFrame:
    """Success by policy and size: k of n."""
    grouped = found.groupby(["environment", "policy", "eps"], sort=False)["success"]
    return grouped.agg(k="sum", n="count").reset_index().astype({"k": int, "n": int})


def draw_survival(found: pd.DataFrame, path: Path) -> None:
    """Success under the worst of all attacks against their size, a panel for every environment."""
    from matplotlib.figure import Figure

    environments = list(dict.fromkeys(found["environment"]))
    figure = Figure(figsize=(5 * len(environments), 3.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(environments), sharey=True))
    for axis, environment in zip(axes, environments, strict=True):
        table = survival_table(found[found["environment"] == environment])
        for index, (policy, lines) in enumerate(table.groupby("policy", sort=False)):
            x = 255 * lines["eps"].to_numpy() + 0.12 * index
            rates = 100 * (lines["k"] / lines["n"]).to_numpy()
            bounds = 100 * np.array([wilson(k, n) for k, n in zip(lines["k"], lines["n"], strict=True)])
            spread = np.abs(bounds.T - rates)
            axis.errorbar(x, rates, spread, marker="o", markersize=4, capsize=2, linewidth=1, label=policy)
        axis.set(xlabel="size of the attacks, sensor values of 255", ylim=(-3, 103))
        axis.set_title(environment, fontsize=10)
    axes[0].set_ylabel("success % under the worst attack")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
