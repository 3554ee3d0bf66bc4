"""Runs of attacks, audits and rings read together, and the report of what they leave of the promises."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mrvlm_sim.agents.registry import short_identity
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.evaluation.audit import JUDGED
from mrvlm_sim.evaluation.cascade import with_sizes
from mrvlm_sim.evaluation.condition import Condition, attack_size
from mrvlm_sim.evaluation.gates import CONVERGES, TRANSFER
from mrvlm_sim.evaluation.ledger import OWED
from mrvlm_sim.evaluation.promises import (
    Attacked,
    Audited,
    Effort,
    centre_findings,
    comparison_findings,
    jitter_findings,
    robust_findings,
)
from mrvlm_sim.evaluation.rings import LOOKS
from mrvlm_sim.evaluation.robustness import all_met, attack_sizes, worst_up_to
from mrvlm_sim.evaluation.store import planned_keys, read_episodes, read_parts
from mrvlm_sim.metrics.statistics import wilson
from mrvlm_sim.paths import make_parent, write_atomically

COLUMNS = ["policy", "suite_seed", "episode", "eps", "success", "error"]


def read_attacked(folder: Path) -> Attacked:
    """A finished run of `attack`.

    Raises:
        UserError: it is of no attack, or not finished.
    """
    rows, conditions = read_episodes(folder), read_parts(folder, "condition")
    if missing := len(planned_keys(folder)) - len(rows):
        raise UserError(f"{missing} episodes of {folder} are missing; run the same attack again, which goes on")
    if all(condition["attack"] is None for condition in conditions.values()):
        raise UserError(f"{folder} is a run without attacks; give runs of mrvlm-sim attack")
    rows = with_sizes(rows.assign(error=rows["error"] != ""), conditions)
    found, efforts, unmet = [rows[rows["size"] == 0].assign(eps=0.0)], dict[str, list[Effort]](), dict[str, list[str]]()
    for policy in dict.fromkeys(rows["policy"]):
        own = rows[rows["policy"] == policy]
        worst = {size: worst_up_to(own, size) for size in attack_sizes(rows)}
        found += [left.assign(eps=size) for size, left in worst.items() if left is not None]
        efforts[policy], unmet[policy] = efforts_on(own, worst, conditions), unmet_by(own, worst, conditions)
    survived = pd.concat([part[COLUMNS] for part in found], ignore_index=True)
    identities = {name: short_identity(each["identity"]) for name, each in read_parts(folder, "policy").items()}
    return Attacked(str(rows["environment"].iloc[0]), survived, identities, efforts, unmet)


def efforts_on(
    rows: pd.DataFrame, worst: Mapping[float, pd.DataFrame | None], conditions: Mapping[str, Mapping[str, Any]]
) -> list[Effort]:
    """Of attacks on one policy that can be audited, and that at every size met all that the worst of all left, how hard
    they were at the least; rows are `with_sizes`.
    """
    found, judged = [], _judged(conditions)
    for attack in JUDGED:
        audited = {name: each for name, each in judged.items() if each.attack == attack}
        own = rows[rows["condition"].isin(audited)]
        complete = all(left is not None and all_met(left, own[own["size"] == size]) for size, left in worst.items())
        taken = [audited[name] for name in own["condition"].unique()]
        if taken and complete:
            found.append(Effort(attack, min(each.steps for each in taken), min(each.draws for each in taken)))
    return found


def unmet_by(
    rows: pd.DataFrame, worst: Mapping[float, pd.DataFrame | None], conditions: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Attacks that did not meet all of one policy's episodes that the worst of all left; rows are `with_sizes`."""
    sizes = {name: attack_size(described) for name, described in conditions.items()}
    return [
        name
        for name, size in sizes.items()
        if size and ((left := worst.get(size)) is None or not all_met(left, rows[rows["condition"] == name]))
    ]


def _judged(conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, Condition]:
    """Those that audits are of: on the whole frame, by the policy's own gradients, its jitter not known."""
    fields, found = {field.name for field in dataclasses.fields(Condition)}, {}
    for name, described in conditions.items():
        condition = Condition(**{key: value for key, value in described.items() if key in fields})
        usual = (condition.knowledge, condition.region, condition.surrogate) == ("unknown", "frame", None)
        if condition.attack in JUDGED and usual:
            found[name] = condition
    return found


def check_audited_by(folder: Path | None, attack: str) -> None:
    """
    Raises:
        UserError: a folder has an audit of another attack, which would be counted in.
    """
    if folder is None or not (folder / "audit.csv").is_file():
        return
    if (other := read_audit(folder).effort.attack) != attack:
        raise UserError(f"{folder} holds an audit of {other}; give another --output, or take --attack {other}")


def read_audit(folder: Path) -> Audited:
    """What an audit found.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / "audit.csv").is_file():
        raise UserError(f"no audit in {folder}; make one: mrvlm-sim audit --env ENV --policy POLICY --output {folder}")
    rows, table = read_episodes(folder), pd.read_csv(folder / "audit.csv", keep_default_na=False)
    policy = next(name for name in dict.fromkeys(rows["policy"]) if name != "random")
    if not (folder / "ledger.csv").is_file():
        raise UserError(f"the audit in {folder} was not finished; the same command again makes it whole")
    smallest = min(_judged(read_parts(folder, "condition")).values(), key=lambda condition: condition.eps)
    effort = Effort(str(smallest.attack), smallest.steps, smallest.draws)
    amiss = table.loc[table.iloc[:, 1] != "pass", "gate"].tolist()
    unasked = {CONVERGES: CONVERGES, TRANSFER: f"{TRANSFER} others"}  # by audits of old
    amiss += [gate for start, gate in unasked.items() if not table["gate"].str.startswith(start).any()]
    ledger = pd.read_csv(folder / "ledger.csv").set_index("attacker")
    mean, low, high = ledger.loc[OWED, ["harm", "low", "high"]]
    return Audited(
        str(rows["environment"].iloc[0]),
        policy,
        short_identity(read_parts(folder, "policy")[policy]["identity"]),
        effort,
        smallest.eps,
        tuple(amiss),
        float(ledger.loc["known", "harm"]),
        (float(mean), float(low), float(high)),
    )


def read_rings(folder: Path) -> pd.DataFrame:
    """What `rings` found in every look.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / LOOKS).is_file():
        raise UserError(f"no rings in {folder}; make them: mrvlm-sim rings --env ENV --policy POLICY --output {folder}")
    looks = pd.read_csv(folder / LOOKS)
    if missing := {"environment", "identity", "steps", "draws"} - set(looks):
        raise UserError(f"the rings in {folder} do not say their {', '.join(sorted(missing))}; make them again")
    return looks


def write_verdicts(
    folder: Path,
    attacked: Sequence[Path],
    audits: Sequence[Path],
    rings: Sequence[Path],
    reference: str,
    control: str | None = None,
    policies: Sequence[str] = (),
) -> pd.DataFrame:
    """Write `verdicts.csv`, `verdicts.md`, `survival.csv` and `survival.png`; returns the verdicts.

    `reference` is what the others are to be more robust than, `control` what tells rings from mere averaging; with
    `policies`, nothing is said of others.

    Raises:
        UserError: a folder does not hold what it is given for, the reference was not attacked as the others were, two
            runs are of one environment, or a policy was attacked in none.
    """
    runs, audited = [read_attacked(run) for run in attacked], [read_audit(audit) for audit in audits]
    if policies:
        runs = _only(runs, [*policies, reference])
        audited = [audit for audit in audited if audit.policy in {*policies, reference}]
    environments = [run.environment for run in runs]
    if len(set(environments)) < len(environments):
        raise UserError(f"two runs are of one environment ({', '.join(environments)}); merge them: mrvlm-sim merge")
    others = sum(run.survived["policy"].nunique() - 1 for run in runs)
    looks = [read_rings(ring) for ring in rings]
    ringed = sum(2 * each["policy"].nunique() - 1 if control else each["policy"].nunique() for each in looks)
    findings = [finding for run in runs for finding in robust_findings(run, audited)]
    findings += [finding for run in runs for finding in comparison_findings(run, reference, audited, max(1, others))]
    findings += [finding for each in looks for finding in centre_findings(each, audited, ringed, control)]
    findings += jitter_findings(audited)
    table = pd.DataFrame(findings)
    survived = pd.concat([run.survived.assign(environment=run.environment) for run in runs], ignore_index=True)
    make_parent(folder / "verdicts.csv")
    write_atomically(folder / "verdicts.csv", table.to_csv(index=False))
    write_atomically(folder / "verdicts.md", table.to_markdown(index=False) + "\n")
    write_atomically(folder / "survival.csv", survival_table(survived).to_csv(index=False))
    draw_survival(survived, folder / "survival.png")
    return table


def _only(runs: Sequence[Attacked], policies: Sequence[str]) -> list[Attacked]:
    """The runs, as if no others had been attacked.

    Raises:
        UserError: one of the policies was attacked in none.
    """
    known = {name for run in runs for name in run.survived["policy"]}
    for policy in policies:
        if policy not in known:
            raise unknown_name("policy", policy, known)
    return [run._replace(survived=run.survived[run.survived["policy"].isin(policies)]) for run in runs]


def survival_table(found: pd.DataFrame) -> pd.DataFrame:
    """Success by policy and size: k of n, with its interval."""
    grouped = found.groupby(["environment", "policy", "eps"], sort=False)["success"]
    table = grouped.agg(k="sum", n="count").reset_index().astype({"k": int, "n": int})
    bounds = [wilson(k, n) for k, n in zip(table["k"], table["n"], strict=True)]
    return table.assign(rate=table["k"] / table["n"], low=[low for low, _ in bounds], high=[high for _, high in bounds])


def draw_survival(found: pd.DataFrame, path: Path) -> None:
    """Success under the worst of all attacks against their size, a panel for every environment."""
    from matplotlib.figure import Figure

    environments, policies = (list(dict.fromkeys(found[name])) for name in ("environment", "policy"))
    figure = Figure(figsize=(5 * len(environments) + 2.5, 3.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(environments), sharey=True))
    for axis, environment in zip(axes, environments, strict=True):
        table = survival_table(found[found["environment"] == environment])
        sizes = np.sort(table["eps"].unique())
        for policy, lines in table.groupby("policy", sort=False):
            index = policies.index(policy)
            x = np.searchsorted(sizes, lines["eps"]) + 0.08 * index
            rates = 100 * lines["rate"].to_numpy()
            spread = np.abs(100 * lines[["low", "high"]].to_numpy().T - rates)
            axis.errorbar(
                x, rates, spread, marker="o", markersize=4, capsize=2, linewidth=1, color=f"C{index}", label=policy
            )
        axis.set_xticks(range(len(sizes)), [f"{255 * size:g}" if size else "clean" for size in sizes])
        axis.set(xlabel="size of the attacks, sensor values of 255", ylim=(-3, 103))
        axis.set_title(environment, fontsize=10)
    axes[0].set_ylabel("success % under the worst attack")
    shown = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)
