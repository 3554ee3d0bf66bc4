"""Knobs of an environment: `pick_place[max_yaw=0.0;objects=[4, 4]]` is `pick_place` with two values changed.

Such a reference is understood wherever the name of an environment is. The episodes are those of the plain environment:
their random streams do not depend on what stands in the brackets.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from mrvlm_sim.errors import UserError, unknown_name

OUTSIDE_QUOTES = r';(?=(?:[^"]*"[^"]*")*[^"]*$)'
OF_EVERY_TASK = ("max_steps", "hold_steps", "reward")


def with_settings(name: str, settings: Iterable[str]) -> str:
    """The reference for `name` with settings of the form `name.knob=value`.

    Raises:
        UserError: a setting has another form, or is one of another environment.
    """
    chosen: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        environment, dot, knob = key.strip().rpartition(".")
        if not (equals and dot and knob and value.strip()):
            raise UserError(f"--set must be ENVIRONMENT.KNOB=VALUE, for example {name}.max_steps=60, not {setting!r}")
        if environment != name:
            raise UserError(f"--set {setting}: the environment is {name}, so knobs begin with {name!r} and a dot")
        chosen[knob] = _quoted(value.strip())
    inside = ";".join(f"{knob}={value}" for knob, value in sorted(chosen.items()))
    return f"{name}[{inside}]" if inside else name


def split_settings(reference: str) -> tuple[str, dict[str, Any]]:
    """The name of the environment, and the values that were set; text need not be quoted.

    Raises:
        UserError: a value is set twice.
    """
    name, bracket, inside = reference.partition("[")
    if not bracket:
        return name, {}
    pairs = [pair.partition("=") for pair in re.split(OUTSIDE_QUOTES, inside.removesuffix("]"))]
    knobs = [knob.strip() for knob, *_ in pairs]
    if doubled := {knob for knob in knobs if knobs.count(knob) > 1}:
        raise UserError(f"{reference} sets {', '.join(sorted(doubled))} twice; set each once")
    return name, {knob: _value(text.strip()) for knob, (*_, text) in zip(knobs, pairs, strict=True)}


def apply_settings(
    values: Mapping[str, Any], settings: Mapping[str, Any], name: str, knobs: Iterable[str]
) -> dict[str, Any]:
    """The values of a card with the settings in their places; `knobs` are the task's own.

    Raises:
        UserError: there is no such knob.
    """
    changed, parameters, known = dict(values), dict(values.get("parameters", {})), list(knobs)
    for knob, value in settings.items():
        if knob in OF_EVERY_TASK:
            changed[knob] = value
        elif knob in known:
            parameters[knob] = value
        else:
            raise unknown_name(f"knob of {name}", knob, [*known, *OF_EVERY_TASK])
    return changed | {"parameters": parameters}


def _quoted(text: str) -> str:
    """Text as TOML has it, if it would not be understood as it is."""
    return (
        text if (";" not in text and "]" not in text) or not isinstance(_value(text), str) else json.dumps(_value(text))
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
