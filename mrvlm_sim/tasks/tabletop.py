"""What tasks on the table share: colours, places, phrases, and the landmarks that every policy learns to find."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import AfterValidator, Field, field_validator, model_validator

from mrvlm_sim.cards import Card
from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.card import Workspace
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.sim.suite_env import INSTRUCTION_BYTES

COLOURS = {
    "red": (0.80, 0.15, 0.12),
    "green": (0.15, 0.60, 0.20),
    "blue": (0.15, 0.28, 0.80),
    "yellow": (0.85, 0.72, 0.15),
}
KINDS = 4  # of things, and of goals: colours, marks
THINGS, GOALS = 2, 2 + KINDS  # where the landmarks of each begin; 0 is the named thing, 1 the named goal
LANDMARKS = 2 + 2 * KINDS
LONGEST_PHRASE = INSTRUCTION_BYTES - 40  # bytes; the rest is for the names of things


def _fewest_first(counts: tuple[int, int]) -> tuple[int, int]:
    if counts[0] > counts[1]:
        raise ValueError("must be [fewest, most]")
    return counts


Count = Annotated[int, Field(ge=1, le=KINDS)]
FEWEST_FIRST = AfterValidator(_fewest_first)
Counts = Annotated[tuple[Count, Count], FEWEST_FIRST]  # fewest and most


class Area(Card):
    """Parameters with an area of the table, from `area_low` to `area_high` in metres, on two or three axes."""

    area_low: tuple[float, ...]
    area_high: tuple[float, ...]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not all(low < high for low, high in zip(self.area_low, self.area_high, strict=True)):
            raise ValueError(f"area_low must lie below area_high on every axis: {self.area_low}, {self.area_high}")
        return self


@dataclass(frozen=True)
class Phrases:
    """Ways to say an instruction, with `{thing}` and `{goal}` in them; the unseen ones are never trained on."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def say(self, rng: np.random.Generator, unseen: bool = False, **words: str) -> str:
        """One of them at random."""
        phrases = self.unseen if unseen else self.seen
        return phrases[int(rng.integers(len(phrases)))].format(**words)


class Wording(Card):
    """Parameters that say how an instruction is worded."""

    unseen_phrases: bool = False  # in words that demonstrations never use
    phrase: str | None = None  # or in these, with {thing} and {goal} where what is meant must be named

    @field_validator("phrase")
    @classmethod
    def _fits(cls, phrase: str | None) -> str | None:
        if phrase is not None and (size := len(phrase.encode())) > LONGEST_PHRASE:
            raise ValueError(f"must have at most {LONGEST_PHRASE} bytes of UTF-8, not {size}")
        return phrase


class TableTask:
    """What these tasks do alike: their instruction is one of several phrases, and things stay where they are."""

    phrases: Phrases
    parameters: Wording
    words: dict[str, str]  # that fill the phrase, since the last reset

    def say(self, rng: np.random.Generator, **words: str) -> str:
        """An instruction about these things, worded as the parameters say."""
        phrase = self.parameters.phrase
        if phrase is None:
            return self.phrases.say(rng, self.parameters.unseen_phrases, **words)
        for name, word in words.items():
            phrase = phrase.replace(f"{{{name}}}", word)
        return phrase

    def rephrase(self, rng: np.random.Generator) -> str:
        """The present instruction in other words, that demonstrations never use."""
        return self.phrases.say(rng, unseen=True, **self.words)

    def paths(self) -> np.ndarray:
        """Circles (n, 3) on the table, x, y and radius in metres, over which things will move by themselves."""
        return np.empty((0, 3))


def require_area(workspace: Workspace, margin: float = 0.0, **areas: tuple[Sequence[float], Sequence[float]]) -> None:
    """Areas, from `<name>_low` to `<name>_high` in metres on two or three axes, must lie in the workspace.

    Raises:
        UserError: one does not, `margin` metres away from its borders, or its `low` is not below its `high`.
    """
    for name, (low, high) in areas.items():
        if not all(one < other for one, other in zip(low, high, strict=True)):
            raise UserError(f"{name}_low must lie below {name}_high on every axis: {tuple(low)}, {tuple(high)}")
        axes = slice(len(low))
        least, most = np.array(workspace.low)[axes] + margin, np.array(workspace.high)[axes] - margin
        if (low < least).any() or (high > most).any():
            raise UserError(
                f"{name}_low and {name}_high must lie between {least.round(3).tolist()} and {most.round(3).tolist()}, "
                f"where the fingertips can reach, not {tuple(low)} and {tuple(high)}"
            )


def scatter(
    rng: np.random.Generator,
    count: int,
    low: Sequence[float],
    high: Sequence[float],
    spacing: float,
    taken: np.ndarray | None = None,
    clearance: float = 0.0,
) -> np.ndarray:
    """Random places (count, axes) between `low` and `high`, in metres, no two closer than `spacing`.

    They keep `clearance` from the places (n, axes) that are taken already.

    Raises:
        UserError: there is no room for so many.
    """
    for _ in range(1000):
        places: list[np.ndarray] = []
        for _ in range(200):
            place = rng.uniform(low, high)
            clear = taken is None or (np.linalg.norm(place - taken, axis=1) >= clearance).all()
            if clear and all(np.linalg.norm(place - other) >= spacing for other in places):
                places.append(place)
            if len(places) == count:
                return np.array(places)
    raise UserError(
        f"{count} objects and targets do not fit {spacing} m apart between "
        f"{tuple(low)} and {tuple(high)}; enlarge the area or lower the spacing"
    )


def closeness(distance: float, scale: float) -> float:
    """From 1 at no distance over 1/2 at `scale` towards 0 far away, both in metres.

    It is smooth at the goal too, where an exponential has a kink, and its slope fades slowly with the distance.
    """
    return 1.0 / (1.0 + (distance / scale) ** 2)


def landmarks(
    scene: Scene, named: tuple[str, str | None], things: Sequence[str | None], goals: Sequence[str | None]
) -> np.ndarray:
    """float32 (LANDMARKS, 3): the named thing and goal, then the thing and the goal of each kind, from the fingertips.

    Bodies by name; None, and the rows beyond the end of `things` and `goals`, are NaN.
    """
    rows = np.full((LANDMARKS, 3), np.nan)
    padded = [*things, *[None] * (KINDS - len(things)), *goals, *[None] * (KINDS - len(goals))]
    for row, body in enumerate([*named, *padded]):
        if body is not None:
            rows[row] = scene.position(body)
    return (rows - scene.fingertips()).astype(np.float32)


def by_kind(painted: Mapping[str, str], kinds: Sequence[str]) -> list[str | None]:
    """Bodies in the order of kinds, None where a kind is not there."""
    return [painted.get(kind) for kind in kinds]


def rename(landmarks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """For B scenes, name another thing and another goal among those that are there.

    Returns the landmarks (B, LANDMARKS, 3) under the new names, and the kinds named: one index (B,) for things and one
    for goals. Where a scene has no goals of several kinds, its goal stays what it was, and its index is -1.
    """
    scenes, renamed, named = np.arange(len(landmarks)), landmarks.copy(), []
    for row, first in ((0, THINGS), (1, GOALS)):
        there = ~np.isnan(landmarks[:, first : first + KINDS, 0])
        kind = np.argmax(rng.random(there.shape) * there, axis=1)
        some = there.any(axis=1)
        renamed[some, row] = landmarks[scenes, first + kind][some]
        named.append(np.where(some, kind, -1))
    return renamed, named
