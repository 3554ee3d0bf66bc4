"""From an arm's card to the card of its training by reinforcement."""

from collections.abc import Mapping
from pathlib import Path

from mrvlm_sim.agents.card import PolicyCard, ReinforcementRecipe
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.errors import UserError, unknown_name

ALGORITHMS = ("ppo",)
NO_DICTS = ("ars",)  # algorithms of stable-baselines3 and sb3-contrib that take no Dict observations
DISCRETE = ("dqn", "qrdqn")


def reinforcement_card(
    arm: str, environment: str, algorithm: str, init: Path | None, changed: Mapping[str, int | None]
) -> PolicyCard:
    """The arm's eyes and network, with one action per look, and a recipe: the card's own or the default.

    Raises:
        UserError: no such arm or algorithm, or values out of range.
    """
    check_algorithm(algorithm)
    card, _ = arm_card(arm)
    own = card.training.model_dump() if isinstance(card.training, ReinforcementRecipe) else {}
    values = own | {"method": algorithm} | {name: value for name, value in changed.items() if value is not None}
    if init is not None:
        values["init"] = str(init)
    try:
        recipe = ReinforcementRecipe.model_validate(values)
    except ValueError as error:
        raise UserError(f"the recipe does not fit: {error}") from error
    network = card.network.model_copy(update={"chunk": 1})
    summary = f"{card.summary.rstrip('.')}; trained by reinforcement."
    update = {"summary": summary, "environments": [environment], "execute": 1, "network": network}
    return card.model_copy(update={**update, "training": recipe, "weights": None})


def check_algorithm(name: str) -> None:
    """
    Raises:
        UserError: it is none that trains here.
    """
    if name in NO_DICTS:
        raise UserError(f"{name} cannot take Dict observations, which tokens are; take one of {', '.join(ALGORITHMS)}")
    if name in DISCRETE:
        raise UserError(
            f"{name} chooses among discrete actions, and these are vectors; take one of {', '.join(ALGORITHMS)}"
        )
    if name not in ALGORITHMS:
        raise unknown_name("algorithm", name, ALGORITHMS)
