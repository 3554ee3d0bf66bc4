"""From rows to the table: every rate with its interval, every arm against the reference on the same episodes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from mrvlm_sim.agents.policy import Policy, requirements_of
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.metrics.cost import flops, parameters
from mrvlm_sim.metrics.statistics import compare_paired, holm, wilson

REFERENCE = "uniform-256"
MOST_SIDE_BY_SIDE = 3  # conditions in one table


def reference_among(policies: Iterable[str], reference: str) -> str:
    """The policy that is meant by the name of the reference: `uniform-256` also stands for `generalist/uniform-256`."""
    meant = (name for name in policies if name == reference or name.endswith(f"/{reference}"))
    return next(meant, reference)


def success_table(rows: pd.DataFrame, planned: Mapping[str, int], reference: str = REFERENCE) -> pd.DataFrame:
    """One line per policy: success under every condition, comparison with the reference under the first, errors.

    Numbers are raw (rates in [0, 1], milliseconds); `pretty` makes text of them. `planned` counts the episodes of
    each policy over all conditions; those that were never finished are `missing`. An episode with an error was
    attempted and did not succeed.
    """
    if rows.empty:
        return pd.DataFrame()
    conditions = list(dict.fromkeys(rows["condition"]))
    lines = []
    for policy, count in planned.items():
        own = rows[rows["policy"] == policy]
        line: dict[str, object] = {"policy": policy}
        for condition in conditions:
            line |= _success(own[own["condition"] == condition], condition)
            if condition != conditions[0]:
                line |= _drop(own, conditions[0], condition)
        line |= _against(rows, policy, reference, conditions[0])
        line |= _latency(own[own["condition"] == conditions[0]])
        line |= {"errors": int((own["error"] != "").sum()), "missing": count - len(own)}
        lines.append(line)
    table = pd.DataFrame(lines)
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table


def policy_cost(policy: Policy) -> dict[str, float]:
    """Tokens, parameters and GFLOPs per forward and per control step, as far as the policy has them."""
    cost: dict[str, float] = {}
    if tokens := [p.tokens for p in requirements_of(policy).cameras.values() if p.tokens > 1]:  # 1: a plain picture
        cost["tokens"] = sum(tokens)
    if isinstance(policy, TrainedPolicy):
        count = flops(policy.card.cameras, policy.card.network)
        cost["params_M"] = parameters(policy.network) / 1e6
        cost["gflops_forward"] = count.total / 1e9
        cost["gflops_step"] = count.per_control_step(policy.card.execute) / 1e9
    return cost


def pretty_tables(table: pd.DataFrame, reference: str = REFERENCE) -> list[pd.DataFrame]:
    """What people read: one table, or, where its conditions are too many for that, a second one of a line for each."""
    if len(conditions_of(table)) <= MOST_SIDE_BY_SIDE:
        return [pretty(table, reference)]
    return [pretty(table, reference, conditions_of(table)[:1]), by_condition(table)]


def by_condition(table: pd.DataFrame) -> pd.DataFrame:
    """Success of every policy under every condition, and what it lost against the first: text only, a line each."""
    lines = []
    for condition in conditions_of(table):
        rates = _columns(table, condition, ("rate", "low", "high", "k", "n"))
        has_drop = f"{condition}/drop" in table
        drops = _columns(table, condition, DROP) if has_drop else np.full((len(table), 3), np.nan)
        for policy, rate, drop in zip(table["policy"], rates, drops, strict=True):
            shown = {"success % [95 % CI]": _rate(*rate), "drop": signed(*drop)}
            lines.append({"condition": condition, "policy": str(policy), **shown})
    return pd.DataFrame(lines)


def pretty(table: pd.DataFrame, reference: str = REFERENCE, conditions: Sequence[str] | None = None) -> pd.DataFrame:
    """The table as people read it: text only, rates in percent with their intervals."""
    shown: dict[str, list[str]] = {"policy": [str(name) for name in table["policy"]]}
    for condition in conditions if conditions is not None else conditions_of(table):
        shown[f"{condition} success % [95 % CI]"] = [
            _rate(*values) for values in _columns(table, condition, ("rate", "low", "high", "k", "n"))
        ]
        if f"{condition}/drop" in table:
            shown[f"{condition} drop"] = [signed(*values) for values in _columns(table, condition, DROP)]
    if table["difference"].notna().any():
        differences = table[["difference", "difference_low", "difference_high"]].to_numpy()
        shown[f"difference to {reference}"] = [signed(*values) for values in differences]
        shown["McNemar p (Holm)"] = [with_holm(*values) for values in table[["p", "p_holm"]].to_numpy()]
    formats = {"tokens": "{:.0f}", "params_M": "{:.2f}", "gflops_forward": "{:.3f}", "gflops_step": "{:.3f}"}
    titles = {"params_M": "params M", "gflops_forward": "GFLOPs/forward", "gflops_step": "GFLOPs/step"}
    for column, form in formats.items():
        if column in table and table[column].notna().any():
            shown[titles.get(column, column)] = [_number(value, form) for value in table[column]]
    latency = table[["latency_p50", "latency_p95"]].to_numpy()
    shown["act ms p50/p95"] = [f"{p50:.1f} / {p95:.1f}" if p50 == p50 else "-" for p50, p95 in latency]
    shown |= {name: [str(value) for value in table[name]] for name in ("errors", "missing")}
    return pd.DataFrame(shown)


DROP = ("drop", "drop_low", "drop_high")


def conditions_of(table: pd.DataFrame) -> list[str]:
    """The conditions that a table has columns for."""
    return [column.removesuffix("/rate") for column in table if str(column).endswith("/rate")]


def _success(rows: pd.DataFrame, condition: str) -> dict[str, object]:
    if rows.empty:
        return {}
    attempts, successes = len(rows), int(rows["success"].sum())
    low, high = wilson(successes, attempts)
    values = {"k": successes, "n": attempts, "rate": successes / attempts, "low": low, "high": high}
    return {f"{condition}/{name}": value for name, value in values.items()}


def _drop(own: pd.DataFrame, clean: str, condition: str) -> dict[str, object]:
    """Clean minus attacked on the same episodes."""
    a, b = paired(own[own["condition"] == clean], own[own["condition"] == condition])
    if len(a) == 0:
        return {}
    compared = compare_paired(a, b)
    values = zip(DROP, (compared.difference, compared.low, compared.high), strict=True)
    return {f"{condition}/{name}": value for name, value in values}


def _against(rows: pd.DataFrame, policy: str, reference: str, condition: str) -> dict[str, object]:
    rows = rows[rows["condition"] == condition]
    a, b = paired(rows[rows["policy"] == policy], rows[rows["policy"] == reference])
    names = ("difference", "difference_low", "difference_high", "p", "p_holm")
    if policy == reference or len(a) == 0:
        return dict.fromkeys(names, np.nan)
    compared = compare_paired(a, b)
    values = compared.difference, compared.low, compared.high, compared.p_value, np.nan
    return dict(zip(names, values, strict=True))


def paired(a: pd.DataFrame, b: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Successes of two sets of rows on the episodes that both have."""
    name = ["suite_seed", "episode"]
    joined = a[[*name, "success"]].merge(b[[*name, "success"]], on=name, suffixes=("_a", "_b"))
    return joined["success_a"].to_numpy(bool), joined["success_b"].to_numpy(bool)


def _latency(rows: pd.DataFrame) -> dict[str, float]:
    values = np.array([float(v) for text in rows["latency_ms"] for v in text.split()])
    if len(values) == 0:
        return {"latency_p50": np.nan, "latency_p95": np.nan}
    p50, p95 = np.percentile(values, [50, 95])
    return {"latency_p50": p50, "latency_p95": p95}


def _columns(table: pd.DataFrame, condition: str, names: Sequence[str]) -> np.ndarray:
    return table[[f"{condition}/{name}" for name in names]].to_numpy(float)


def in_percent(value: float, low: float, high: float, digits: int = 1) -> str:
    """A part and its interval as people read them."""
    return f"{100 * value:.{digits}f} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def _rate(rate: float, low: float, high: float, successes: float, attempts: float) -> str:
    if rate != rate:
        return "-"
    return f"{in_percent(rate, low, high)} ({successes:.0f}/{attempts:.0f})"


def signed(value: float, low: float, high: float, digits: int = 1) -> str:
    """A difference in percent with its interval; - if there is none."""
    return "-" if value != value else f"{100 * value:+.{digits}f} [{100 * low:+.{digits}f}, {100 * high:+.{digits}f}]"


def with_holm(p: float, corrected: float) -> str:
    """A p-value, and what Holm's correction leaves of it; - if there is none."""
    return "-" if p != p else f"{p:.2g} ({corrected:.2g})"


def _number(value: float, form: str) -> str:
    return "-" if value != value else form.format(value)
