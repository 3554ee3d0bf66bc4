"""The ledger of randomness: how much of a policy's robustness is owed to the attacker not knowing how jitter falls."""

import numpy as np
import pandas as pd

from mrvlm_sim.evaluation.audit import Audit
from mrvlm_sim.metrics.statistics import mean_interval

ARMS = {
    "off": "takes all levels to be centred",
    "unknown": "knows how jitter is distributed",
    "known": "sees where the levels lie in this frame",
    "chosen": "decides where they lie, of some draws",
}
OWED = "owed to randomness"


def ledger(audit: Audit) -> pd.DataFrame:
    """What the audited attack does with more and more knowledge, as a part of the actions' range, with 95 % intervals.

    Who does not know the jitter is measured under fresh draws of it, who knows or chooses it, under that one. The last
    line is what knowing adds to not knowing, in the same looks: what randomness alone protects.
    """
    harms = {name: audit.harms(audit.attack, knowledge=name, fresh=name in ("off", "unknown")) for name in ARMS}
    lines = [_line(name, about, harms[name]) for name, about in ARMS.items()]
    lines.append(_line(OWED, "known less unknown", harms["known"] - harms["unknown"]))
    return pd.DataFrame(lines)


def _line(name: str, about: str, values: np.ndarray) -> dict[str, object]:
    mean, low, high = mean_interval(values)
    return {"attacker": name, "": about, "harm": mean, "low": low, "high": high}


def pretty_ledger(table: pd.DataFrame) -> pd.DataFrame:
    """The ledger as people read it, in percent."""
    harm = [
        "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * line[name] for name in ("harm", "low", "high")))
        for line in table.to_dict("records")
    ]
    return table[["attacker", ""]].assign(**{"% of the actions' range [95 % CI]": harm})
