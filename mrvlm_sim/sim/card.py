"""The environment card: everything about an environment that is a number rather than code."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from mrvlm_sim.cards import Card
from mrvlm_sim.paths import cards_in

Positive = Annotated[float, Field(gt=0)]
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
    parameters: dict[str, Any] = {}


def environment_cards() -> dict[str, Any]:
    """Path of every environment card by the environment's name (its folder in `envs/`)."""
    return cards_in("envs", "env.toml")
