"""From an arm's card to the card of its training by reinforcement."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from mrvlm_sim.agents.card import PolicyCard, PPORecipe, SACRecipe
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.training.initial import initial

ALGORITHMS: dict[str, type[PPORecipe] | type[SACRecipe]] = {"ppo": PPORecipe, "sac": SACRecipe}
NO_DICTS = ("ars",)  # algorithms of stable-baselines3 and sb3-contrib that take no Dict observations
DISCRETE = ("dqn", "qrdqn")


def reinforcement_card(
    arm: str,
    environment: str,
    algorithm: str,
    init: Path | None,
    changed: Mapping[str, int | None],
    eyes: str | None = None,
) -> PolicyCard:
    """The arm's eyes, or other `eyes`, its network, with one action per look, and a recipe: its own or the default.

    Raises:
        UserError: no such arm, eyes, algorithm or policy to begin with, or values out of range.
    """
    check_algorithm(algorithm)
    card = arm_card(arm)[0].with_eyes(eyes)
    own = card.training.model_dump() if card.training.method == algorithm else {}
    values = own | {name: value for name, value in changed.items() if value is not None} | initial(init)
    try:
        recipe = ALGORITHMS[algorithm].model_validate(values)
    except ValidationError as error:
        raise UserError(
            "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        ) from error
    network = card.network.model_copy(update={"chunk": 1, "squashed": algorithm == "sac"})
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
