"""From an arm's card to the card of its training by reinforcement, and to the policy that it begins as."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mrvlm_sim.agents.card import PolicyCard, PPORecipe, SACRecipe
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.agents.trained import load_trained
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.models import PolicyNetwork

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
    values = own | {name: value for name, value in changed.items() if value is not None}
    if init is not None:
        begun_as = load_trained(init).card.weights
        values |= {"init": str(init), "init_sha256": begun_as.sha256 if begun_as else None}
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


def begin_as(network: PolicyNetwork, card: PolicyCard, folder: Path) -> None:
    """Give an arm's network the weights of a trained policy of the same arm; of its chunk of actions, the first.

    Raises:
        UserError: the policy has other eyes or another network; it says where.
    """
    policy = load_trained(folder)
    if different := differences(_shape(policy.card), _shape(card)):
        raise UserError(f"--init {folder} is a policy of another arm: {'; '.join(different)}")
    given, own = policy.network.state_dict(), network.state_dict()
    last = f"action_head.layers.{len(network.action_head.layers) - 1}"
    for name in (f"{last}.weight", f"{last}.bias"):
        given[name] = given[name][: len(own[name])]
    network.load_state_dict(given)


def _shape(card: PolicyCard) -> dict[str, Any]:
    return card.model_dump(mode="json", include={"cameras": True, "network": True}, exclude={"network": {"chunk"}})


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested maps differ, in words."""
    found: list[str] = []
    for key in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(key), ours.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key} is {there!r} there and {here!r} here")
    return found
