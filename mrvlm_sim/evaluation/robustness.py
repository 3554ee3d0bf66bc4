"""What attacks did to policies: a run under many attacks, and the worst of them in every episode."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mrvlm_sim.agents.policy import Policy, requirements_of
from mrvlm_sim.agents.registry import policy_name
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.evaluation.cascade import episodes_of, with_sizes
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import surrogate_of, victim_of
from mrvlm_sim.evaluation.report import run_notes
from mrvlm_sim.evaluation.store import read_episodes, read_parts
from mrvlm_sim.evaluation.tables import in_percent, paired, signed
from mrvlm_sim.metrics.attacks import ATTACKS, Knowledge
from mrvlm_sim.metrics.attacks.directed import adversary_card, load_adversary
from mrvlm_sim.metrics.statistics import compare_paired, time_to_failure, wilson
from mrvlm_sim.paths import write_atomically
from mrvlm_sim.sim.card import ExternalCard
from mrvlm_sim.tasks import environment_card

CLEAN = Condition(source="sensor")
WORST = "worst of all"
FITTING = "searches do not choose it, universal and paint take off or unknown, paint the whole frame only"


class Budget(NamedTuple):
    """How hard to attack."""

    attacks: tuple[str, ...]
    steps: int
    draws: int
    episodes: int
    restarts: int = 1  # of attacks with gradients


BUDGETS: Mapping[str, Budget] = {
    "quick": Budget(("noise", "pgd", "features"), 5, 2, 10),
    "standard": Budget(("noise", "best-noise", "fgsm", "pgd", "apgd", "mad", "features", "square"), 20, 4, 50, 2),
    "thorough": Budget(tuple(ATTACKS), 50, 8, 200, 4),
}


def preset_attacks(budget: str, environment: str) -> tuple[str, ...]:
    """Of a budget, the attacks that fit an environment: some take one of this suite's own.

    Raises:
        UserError: there is no such environment.
    """
    external = isinstance(environment_card(environment)[0], ExternalCard)
    return tuple(name for name in BUDGETS[budget].attacks if not (external and ATTACKS[name].own_only))


def attack_conditions(
    attacks: Sequence[str],
    sizes: Sequence[float],
    steps: int,
    draws: int,
    knowledge: Sequence[Knowledge] = ("unknown",),
    regions: Sequence[str] = ("frame",),
    surrogates: Sequence[str] = (),
    restarts: int = 1,
    adversaries: Sequence[str] = (),
) -> list[Condition]:
    """The clean condition and every attack of every size, with all knowledge, in all regions, and every adversary.

    Those with gradients are also found on every surrogate, as far as what they know can be known of it.

    Raises:
        UserError: unknown attack or knowledge, a size out of range, no region, or nothing that fits together.
    """
    for name in attacks:
        if name not in ATTACKS:
            raise unknown_name("attack", name, ATTACKS)
    for folder in adversaries:
        load_adversary(Path(folder))
    found = [CLEAN]
    sizes = list(dict.fromkeys(sizes))
    for size, name, known, region in product(sizes, attacks, knowledge, regions):
        if (name == "noise" and known != knowledge[0]) or known not in ATTACKS[name].knows:
            continue  # noise asks nothing, so that there is nothing to know
        if name == "paint" and region != "frame":
            continue
        given: dict[str, Any] = {"eps": size, "steps": steps, "knowledge": known, "draws": draws, "region": region}
        if ATTACKS[name].white_box:
            given["restarts"] = restarts
        variants: list[dict[str, Any]] = [{"title": name}]
        if name == "directed":
            trained = [(other, Path(other).resolve().parent.name) for other in adversaries]
            variants += [{"title": f"directed by {title}", "adversary": other} for other, title in trained]
        if known in ("off", "unknown") and ATTACKS[name].white_box:
            variants += [{"title": f"{name} from {policy_name(other)}", "surrogate": other} for other in surrogates]
        for each in variants:
            title = _title(each.pop("title"), size, known, region)
            found.append(Condition(title, "sensor", name, **given, **each))
    if len(found) == 1:
        raise UserError(
            f"{', '.join(attacks)} cannot have {', '.join(knowledge)} jitter in {', '.join(regions)}: {FITTING}"
        )
    if surrogates and not any(condition.surrogate for condition in found):
        raise UserError(
            "only attacks with gradients that do not know the jitter (off, unknown) are found on surrogates"
        )
    return found


def _title(name: str, size: float, known: str, region: str) -> str:
    details = [name, *[known] * (known != "unknown"), *[region] * (region != "frame"), f"{255 * size:g}/255"]
    return " ".join(details)


def check_attackable(policies: Mapping[str, Policy], conditions: Sequence[Condition]) -> list[str]:
    """Notes on the policies that some of the attacks do not fit.

    Raises:
        UserError: none of the attacks fits any of the policies, or a surrogate does not.
    """
    attacks = [condition for condition in conditions if condition.attack is not None]
    notes, fitting = [], False
    for name, policy in policies.items():
        if requirements_of(policy).cameras:
            for surrogate in {condition.surrogate for condition in attacks} - {None}:
                surrogate_of(str(surrogate), victim_of(policy))
        notes += _strangers(name, policy, {condition.adversary for condition in attacks} - {None})
        amiss = _amiss(policy, attacks)
        fitting = fitting or len(amiss) < len(attacks)
        if not requirements_of(policy).cameras:
            notes.append(f"{name} sees nothing that could be attacked")
        elif amiss:
            notes.append(_unfit(name, amiss))
    if not fitting:
        raise UserError("\n".join(notes))
    return notes


def unfit_notes(policies: Mapping[str, Policy], conditions: Sequence[Condition]) -> list[str]:
    """What fits the policies that see, but that some of the attacks do not fit."""
    seeing = {name: policy for name, policy in policies.items() if requirements_of(policy).cameras}
    return [_unfit(name, amiss) for name, policy in seeing.items() if (amiss := _amiss(policy, conditions))]


def _amiss(policy: Policy, conditions: Sequence[Condition]) -> list[Condition]:
    """The attacks that do not fit."""
    return [condition for condition in conditions if condition.attack is not None and not condition.applies_to(policy)]


def _unfit(name: str, amiss: Sequence[Condition]) -> str:
    without = ", ".join(attack for attack, kind in ATTACKS.items() if not kind.white_box)
    named = ", ".join(dict.fromkeys(str(condition.attack) for condition in amiss))
    fitting = f"{without}, or attacks from an arm: mrvlm-sim attack --surrogate"
    return f"{name} gives no gradients for {named}; what fits it is {fitting}"


def _strangers(name: str, policy: Policy, adversaries: set[Any]) -> list[str]:
    """Notes on adversaries that were trained on another policy.

    Raises:
        UserError: one directs actions of another size.
    """
    notes, size = [], requirements_of(policy).action_size
    for folder in sorted(adversaries):
        card = adversary_card(Path(folder))
        if size is not None and card.sizes[-1] != size:
            raise UserError(f"adversary {folder} directs {card.sizes[-1]} numbers, the actions of {name} have {size}")
        if card.policy != name:
            notes.append(f"adversary {folder} was trained on {card.policy}, not on {name}")
    return notes


def robustness_table(rows: pd.DataFrame, conditions: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One line per policy and condition, and one per policy and size for the worst of all attacks up to that size.

    Numbers are raw: rates in [0, 1]; `deviation` of the actions as a part of their range, mean over looks; `drop` is
    clean minus attacked on the same episodes; `steps` until success, or the end; `to_failure` the mean time to failure
    in steps, of a policy that is set its task again and again; passes of single observations in every episode. An
    episode succeeds under the worst of all if it did when clean, and under every attack that it met of this size or
    less, as who may change so much may change less, or nothing; there is no such line while an episode that was not
    lost is not attacked by so much. `errors` counts those that ended in one, which is no success.
    """
    lines, sized = [], with_sizes(rows, conditions)
    for policy in dict.fromkeys(rows["policy"]):
        own = sized[sized["policy"] == policy]
        clean = own[own["size"] == 0]
        if len(clean):
            lines.append(_line(policy, "clean", 0.0, clean, clean.iloc[:0]))
        for size in attack_sizes(sized):
            under = own[own["size"] == size].groupby("condition", sort=False)
            lines += [_line(policy, str(name), size, found, clean) for name, found in under]
            if (worst := worst_up_to(own, size)) is not None:
                lines.append(_line(policy, WORST, size, worst, clean))
    return pd.DataFrame(lines)


def attack_sizes(rows: pd.DataFrame) -> list[float]:
    """Of all attacks, from the smallest on."""
    return sorted(rows.loc[rows["size"] > 0, "size"].unique())


def worst_up_to(rows: pd.DataFrame, size: float) -> pd.DataFrame | None:
    """`worst_of` what one policy did when clean and under attacks up to a size; rows are `with_sizes`.

    None if episodes that it did not lose so far were not attacked by so much: what that leaves is unknown.
    """
    worst = worst_of(rows[rows["size"] <= size])
    return worst if all_met(worst, rows[rows["size"] == size]) else None


def all_met(worst: pd.DataFrame, rows: pd.DataFrame) -> bool:
    """Whether all that the worst of all left is among the rows."""
    return episodes_of(worst[worst["success"]]) <= episodes_of(rows)


def worst_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for every episode: whether it succeeded under all conditions, the largest deviation, all that it cost."""
    together = {
        "success": "all",
        "action_deviation": "max",
        "steps": "max",
        "forwards": "sum",
        "backwards": "sum",
        "error": "max",
    }
    return rows.groupby(["policy", "suite_seed", "episode"], as_index=False, sort=False).agg(together)


def _line(policy: str, condition: str, size: float, rows: pd.DataFrame, clean: pd.DataFrame) -> dict[str, Any]:
    k, n = int(rows["success"].sum()), len(rows)
    low, high = wilson(k, n)
    line: dict[str, Any] = {"policy": policy, "attack": condition, "eps": size, "k": k, "n": n}
    line |= {"rate": k / n, "low": low, "high": high, "drop": np.nan, "drop_low": np.nan, "drop_high": np.nan}
    before, after = paired(clean, rows)
    if len(before):
        compared = compare_paired(before, after)
        line |= {"drop": compared.difference, "drop_low": compared.low, "drop_high": compared.high}
    means = rows[["action_deviation", "steps", "forwards", "backwards"]].mean().to_dict()
    line["errors"] = int((rows["error"] != "").sum())
    lasts = time_to_failure(float(rows["steps"].sum()), n - k - line["errors"])
    line |= dict(zip(("to_failure", "to_failure_low", "to_failure_high"), lasts, strict=True))
    return line | {"deviation" if name == "action_deviation" else name: value for name, value in means.items()}


def pretty_robustness(table: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it."""
    shown = []
    for line in table.to_dict("records"):
        drop = signed(line["drop"], line["drop_low"], line["drop_high"])
        rate = in_percent(line["rate"], line["low"], line["high"])
        attacked = line["eps"] > 0
        shown.append(
            {
                "policy": line["policy"],
                "attack": line["attack"] if line["attack"] != WORST else f"{WORST} {255 * line['eps']:g}/255",
                "success % [95 % CI]": f"{rate} ({line['k']}/{line['n']})",
                "drop": drop,
                "action deviation %": f"{100 * line['deviation']:.1f}" if attacked else "-",
                "steps": f"{line['steps']:.0f}",
                "steps to a failure": _lasting(*(line[f"to_failure{end}"] for end in ("", "_low", "_high"))),
                "forwards": f"{line['forwards']:.0f}" if attacked else "-",
                "backwards": f"{line['backwards']:.0f}" if attacked else "-",
                "errors": str(line["errors"]),
            }
        )
    return pd.DataFrame(shown)


def _lasting(mean: float, low: float, high: float) -> str:
    return f"{mean:.0f} [{low:.0f}, {high:.0f}]" if np.isfinite(mean) else f"over {low:.0f}"


def write_robustness(folder: Path) -> pd.DataFrame:
    """Write `robustness.md` and `robustness.csv` of a run; returns the table with raw numbers."""
    table = robustness_table(read_episodes(folder), read_parts(folder, "condition"))
    lines = [pretty_robustness(table).to_markdown(index=False), *(f"\n- {note}" for note in run_notes(folder))]
    write_atomically(folder / "robustness.csv", table.to_csv(index=False))
    write_atomically(folder / "robustness.md", "\n".join(lines) + "\n")
    return table
