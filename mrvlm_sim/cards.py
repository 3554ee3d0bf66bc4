"""Cards: TOML files read into frozen, typed objects; whatever is wrong is named by file, key, value and rule."""

import json
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from mrvlm_sim.errors import UserError


class Card(BaseModel):
    """Base of everything read from a card: frozen, and strict about unknown keys, types and ranges.

    Fields that came `later` are left out of dumps where they have their default, so that cards of old stay equal to
    what runs have kept of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_it_was(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unsaid = {name for name in self.later if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in serialise(self).items() if name not in unsaid}


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: the place, with dots between keys, and what each has there, None for nothing."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path, one, other


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
    location, holder = _place([str(part) for part in problem["loc"]], model)
    value, kind = problem["input"], problem["type"]
    if kind.startswith("union_tag"):  # a table whose kind is not known: the key that says which is at fault
        location.append(problem["ctx"]["discriminator"].strip("'"))
        kind, value = kind.replace("union_tag_not_found", "missing"), problem["ctx"].get("tag")
    key = ".".join([prefix] * bool(prefix) + location) or "(whole card)"
    if kind == "extra_forbidden":
        known = sorted(holder.model_fields)
        nearest = get_close_matches(location[-1], known, n=1)
        remedy = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key {key!r}; {remedy}"
    if kind == "missing":
        return f"{path}: key {key!r} is missing; the card must give it"
    return f"{path}: key {key!r}, value {value!r}: {problem['msg']}"


def _place(location: list[str], model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """Keys on the card, without the tags that pydantic puts in for tables of several kinds, and the model they are in,
    where that can be told from the annotations."""
    keys, kinds = list[str](), list[type[BaseModel]]()
    for part in location:
        if len(kinds) > 1:  # this part is the tag of one of them
            model, kinds = next((kind for kind in kinds if part in _literals(kind)), model), []
            continue
        keys.append(part)
        field = model.model_fields.get(part)
        annotations = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        kinds = [kind for kind in annotations if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(kinds) == 1:
            model, kinds = kinds[0], []
    return keys, model


def _literals(model: type[BaseModel]) -> list[str]:
    return [str(value) for field in model.model_fields.values() for value in getattr(field.annotation, "__args__", ())]
