"""From an environment's name to a running environment: a folder in `envs/` and a module here are all it takes."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from mrvlm_sim.cards import explain, validate_card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.sim.card import (
    AnyEnvironmentCard,
    EnvironmentCard,
    ExternalCard,
    environment_cards,
    is_external,
    read_environment_card,
)
from mrvlm_sim.sim.env import ManipulationEnv, Task
from mrvlm_sim.sim.external import ExternalEnv
from mrvlm_sim.sim.suite_env import SuiteEnv
from mrvlm_sim.tasks.settings import apply_settings, split_settings, with_settings


def environment_card(reference: str) -> tuple[AnyEnvironmentCard, Path]:
    """The card of an environment, with what is set in the reference, and the folder it lies in.

    Raises:
        UserError: there is no such environment or knob, or its card is malformed.
    """
    cards = environment_cards()
    name, settings = split_settings(reference)
    if name not in cards:
        raise unknown_name("environment", name, cards)
    card, folder = read_environment_card(cards[name]), cards[name].parent
    if not settings:
        return card, folder
    if isinstance(card, ExternalCard):
        raise UserError(f"{name} is made by {card.package} and has no knobs here; copy its card and change that")
    knobs = _task_module(card, folder).Parameters.model_fields
    values = apply_settings(card.model_dump(mode="json", exclude_unset=True), settings, name, knobs)
    return validate_card(cards[name], values, EnvironmentCard), folder


def chosen_environments(names: Sequence[str], settings: Sequence[str] = ()) -> list[str]:
    """References of environments by their names, with `all` for every one of this suite's own, and their settings.

    A setting `all.KNOB=VALUE` is one of each of them.

    Raises:
        UserError: there is no such environment or knob, or a setting is of none of them.
    """
    own = [name for name, path in environment_cards().items() if not is_external(path)]
    wanted = list(dict.fromkeys(other for name in names for other in (own if name == "all" else [name])))
    shared = [setting.strip().removeprefix("all.") for setting in settings if setting.strip().startswith("all.")]
    settings = [setting for setting in settings if not setting.strip().startswith("all.")]
    parts = {name: [setting for setting in settings if setting.strip().startswith(f"{name}.")] for name in wanted}
    for setting in settings:
        if not any(setting in part for part in parts.values()):
            with_settings(wanted[0], [setting])  # says what is wrong with it
    references = [
        with_settings(name, [*(f"{name}.{setting}" for setting in shared), *part]) for name, part in parts.items()
    ]
    for reference in references:
        environment_card(reference)
    return references


def make_env(name: str, render_mode: str | None = "rgb_array") -> SuiteEnv:
    """A new environment by its name: its folder in `envs/`, for example `pick_place` or `metaworld/reach-v3`."""
    card, folder = environment_card(name)
    if isinstance(card, ExternalCard):
        return ExternalEnv(card, render_mode, name)
    return ManipulationEnv(card, folder, _build_task(card, folder), render_mode)


def make_own_env(name: str, render_mode: str | None = "rgb_array") -> ManipulationEnv:
    """A new environment of this suite's own, whose states can be restored and whose landmarks are known.

    Raises:
        UserError: it is another package's.
    """
    card, folder = own_card(name)
    return ManipulationEnv(card, folder, _build_task(card, folder), render_mode)


def make_task(name: str) -> Task:
    """The task of an environment, without a simulation around it."""
    return _build_task(*own_card(name))


def own_card(name: str) -> tuple[EnvironmentCard, Path]:
    """The card of an environment of this suite's own, and its folder.

    Raises:
        UserError: it is another package's, or there is none of that name.
    """
    card, folder = environment_card(name)
    if isinstance(card, ExternalCard):
        raise UserError(f"{name} is made by {card.package}; this takes an environment of this suite's own")
    return card, folder


def _task_module(card: EnvironmentCard, folder: Path) -> ModuleType:
    try:
        return import_module(f"mrvlm_sim.tasks.{card.task}")
    except ModuleNotFoundError as error:
        rule = f"there must be a module mrvlm_sim/tasks/{card.task}.py"
        raise UserError(f"{folder / 'env.toml'}: key 'task', value {card.task!r}: {rule}") from error


def _build_task(card: EnvironmentCard, folder: Path) -> Task:
    module = _task_module(card, folder)
    try:
        parameters = module.Parameters.model_validate_json(json.dumps(card.parameters), strict=True)
    except ValidationError as error:
        raise UserError(explain(folder / "env.toml", error, module.Parameters, prefix="parameters")) from error
    return module.build(card, parameters)
