"""Cards: TOML files read into frozen, typed objects; whatever is wrong is named by file, key, value and rule."""

import json
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mrvlm_sim.errors import UserError


class Card(BaseModel):
    """Base of everything read from a card: frozen, and strict about unknown keys, types and ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


CardType = TypeVar("CardType", bound=Card)


def read_card(path: Path, model: type[CardType]) -> CardType:
    """Read and validate one card.

    Raises:
        UserError: the file is missing, is not TOML, or breaks a rule of `model`.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no card at {path}; a {model.__name__} is expected there") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    return validate_card(path, values, model)


def validate_card(path: Path, values: dict[str, Any], model: type[CardType]) -> CardType:
    """A card from its values, which came from `path`.

    Raises:
        UserError: they break a rule of `model`.
    """
    try:
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise UserError(explain(path, error, model)) from error


def explain(path: Path, error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One line for each broken rule: file, key, value, rule. `prefix` is the table that `model` describes."""
    return "\n".join(_explain_one(path, problem, model, prefix) for problem in error.errors())


def _explain_one(path: Path, problem: Any, model: type[BaseModel], prefix: str) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join([prefix] * bool(prefix) + location) or "(whole card)"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        nearest = get_close_matches(location[-1], known, n=1)
        remedy = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key {key!r}; {remedy}"
    if problem["type"] == "missing":
        return f"{path}: key {key!r} is missing; the card must give it"
    return f"{path}: key {key!r}, value {problem['input']!r}: {problem['msg']}"


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields of the sub-model at `location`, where that can be told from the annotations."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if nested:
            model = nested[0]
    return sorted(model.model_fields)
