"""What there is: environments, arms, baselines, attacks, shifts and eyes, as tables of text."""

from importlib.metadata import EntryPoint

import pandas as pd

from mrvlm_sim.agents.registry import BASELINES, arm_card, arm_cards, plugins
from mrvlm_sim.evaluation.runs import MISSING, package_version
from mrvlm_sim.metrics.attacks import ATTACKS
from mrvlm_sim.sim.card import AnyEnvironmentCard, ExternalCard, environment_cards
from mrvlm_sim.tasks import environment_card
from mrvlm_sim.vision.eyes import EYES
from mrvlm_sim.wrappers.shifts import SHIFTS


def catalogue() -> dict[str, pd.DataFrame]:
    """One table per kind, by its title."""
    environments = [(name, environment_card(name)[0]) for name in environment_cards()]
    arms = [(name, arm_card(name)[0]) for name in arm_cards()]
    return {
        "environments": pd.DataFrame([_environment(name, card) for name, card in environments]),
        "arms": pd.DataFrame(
            [
                {
                    "name": n,
                    "environments": ", ".join(c.environments),
                    "weights": "yes" if c.weights else "not trained",
                    "": c.summary,
                }
                for n, c in arms
            ]
        ),
        "baselines": pd.DataFrame([{"name": n, "": _first_line(make)} for n, make in BASELINES.items()]),
        "plugins": pd.DataFrame([{"name": n, "": _state(point)} for n, point in plugins().items()]),
        "attacks": pd.DataFrame([{"name": n, "": _first_line(attack)} for n, attack in ATTACKS.items()]),
        "shifts": pd.DataFrame([{"name": n, "": _first_line(shift)} for n, shift in SHIFTS.items()]),
        "eyes": pd.DataFrame([{"name": n, "": eyes.about} for n, eyes in EYES.items()]),
    }


def _environment(name: str, card: AnyEnvironmentCard) -> dict[str, str]:
    if isinstance(card, ExternalCard):
        missing = package_version(card.package) == MISSING
        return {"name": name, "needs": card.install if missing else "", "task": card.summary}
    return {"name": name, "needs": "", "task": card.summary}


def _state(plugin: EntryPoint) -> str:
    """What a plugin loads, or why it cannot: one that is broken must not hide the others."""
    try:
        plugin.load()
    except Exception as error:
        return f"{plugin.value} cannot be imported: {type(error).__name__}: {error}"
    return plugin.value


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]
