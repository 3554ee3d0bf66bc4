"""The environment card: everything about an environment that is a number rather than code."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mrvlm_sim.cards import Card, read_card
from mrvlm_sim.paths import cards_in

Positive = Annotated[float, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Vector = tuple[float, float, float]


class ActionScale(Card):
    """What one unit of an action means, per control step."""

    translation: Positive  # metres
    yaw: Positive  # radians


class Workspace(Card):
    """Where the fingertips may go, in metres from the arm's base."""

    low: Vector
    high: Vector
    start: Vector

    @model_validator(mode="after")
    def _start_inside(self) -> Self:
        if not all(low < start < high for low, start, high in zip(self.low, self.start, self.high, strict=True)):
            raise ValueError(
                f"start must lie between low and high on every axis: {self.low}, {self.start}, {self.high}"
            )
        return self


class EnvironmentCard(Card):
    """`env.toml`; `parameters` belong to the task, which validates them with its own model."""

    id: Annotated[str, Field(pattern=r"^mrvlm_sim/\w+-v\d+$")]
    task: Annotated[str, Field(pattern=r"^[a-z_]+$")]
    summary: str
    max_steps: Annotated[int, Field(ge=1)]
    control_hz: Positive
    hold_steps: Annotated[int, Field(ge=1)]
    action: ActionScale
    workspace: Workspace
    reward: Literal["sparse", "dense"] = "sparse"
    parameters: dict[str, Any] = {}


class ExternalCard(Card):
    """`env.toml` of an environment that another package makes."""

    gymnasium_id: str  # as `gymnasium.make` takes it: `module:id` imports the module first
    arguments: dict[str, Any] = {}  # of `gymnasium.make`
    package: str  # that makes it
    install: str  # what to give to `pip install`
    summary: str
    instruction: str
    max_steps: Annotated[int, Field(ge=1)]
    hold_steps: Annotated[int, Field(ge=1)] | None = None  # that end an episode; without, its last step decides
    success_key: str  # in `info`
    expert: str | None = None  # `module:Class` with `get_action(native observation) -> native action`
    action_scale: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None  # native units per unit of action
    cameras: dict[str, str]  # our names, `scene` among them, and the model's
    turned: tuple[str, ...] = ()  # cameras that hang upside down
    proprio: Annotated[dict[str, Annotated[list[Index], Field(min_length=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _cameras_fit(self) -> Self:
        if strangers := set(self.turned) - set(self.cameras):
            raise ValueError(f"turned cameras must be among {sorted(self.cameras)}, not {sorted(strangers)}")
        if "scene" not in self.cameras:
            raise ValueError(f"one camera must be called 'scene', for pictures and films: {sorted(self.cameras)}")
        return self


AnyEnvironmentCard = EnvironmentCard | ExternalCard


def read_environment_card(path: Path) -> AnyEnvironmentCard:
    """The card of this suite's own environment, or of another package's: that one has a `gymnasium_id`.

    Raises:
        UserError: the card is malformed.
    """
    return read_card(path, ExternalCard) if is_external(path) else read_card(path, EnvironmentCard)


def is_external(path: Path) -> bool:
    """Whether the card at `path` is that of another package's environment."""
    try:
        return "gymnasium_id" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False  # reading it as a card will say what is wrong


def environment_cards() -> dict[str, Path]:
    """Path of every environment card by the environment's name: its folder in `envs/`, as `suite/task` if nested."""
    return cards_in("envs", "env.toml")
