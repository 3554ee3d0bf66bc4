"""From an environment's name to a running environment: a folder in `envs/` and a module here are all it takes."""

import json
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from mrvlm_sim.cards import explain, read_card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.sim.card import EnvironmentCard, environment_cards
from mrvlm_sim.sim.env import ManipulationEnv, Task


def environment_card(name: str) -> tuple[EnvironmentCard, Path]:
    """The card of an environment and the folder it lies in.

    Raises:
        UserError: there is no such environment, or its card is malformed.
    """
    cards = environment_cards()
    if name not in cards:
        raise unknown_name("environment", name, cards)
    return read_card(cards[name], EnvironmentCard), cards[name].parent


def make_env(name: str, render_mode: str | None = "rgb_array") -> ManipulationEnv:
    """A new environment by the name of its folder in `envs/`, for example `pick_place`."""
    card, folder = environment_card(name)
    return ManipulationEnv(card, folder, _build_task(card, folder), render_mode)


def make_task(name: str) -> Task:
    """The task of an environment, without a simulation around it."""
    return _build_task(*environment_card(name))


def _build_task(card: EnvironmentCard, folder: Path) -> Task:
    path = folder / "env.toml"
    try:
        module = import_module(f"mrvlm_sim.tasks.{card.task}")
    except ModuleNotFoundError as error:
        rule = f"there must be a module mrvlm_sim/tasks/{card.task}.py"
        raise UserError(f"{path}: key 'task', value {card.task!r}: {rule}") from error
    try:
        parameters = module.Parameters.model_validate_json(json.dumps(card.parameters), strict=True)
    except ValidationError as error:
        raise UserError(explain(path, error, module.Parameters, prefix="parameters")) from error
    return module.build(card, parameters)
