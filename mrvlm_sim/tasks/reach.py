"""Reach: touch the named ball, among distractors. Balls are of one size (4 cm), hang anywhere and are never hit."""

from typing import Annotated

import numpy as np
from pydantic import Field

from mrvlm_sim.sim.card import EnvironmentCard, Workspace
from mrvlm_sim.sim.scene import STORE, Scene
from mrvlm_sim.tasks.expert import OPEN, towards
from mrvlm_sim.tasks.tabletop import (
    COLOURS,
    Area,
    Counts,
    Phrases,
    TableTask,
    Wording,
    by_kind,
    closeness,
    landmarks,
    rename,
    require_area,
    scatter,
)

BALLS = ("ball0", "ball1", "ball2", "ball3")
START_CLEARANCE = 0.08  # metres from the fingertips' start to every ball: more than the largest tolerance
REWARD_SCALE = 0.1  # metres
PHRASES = Phrases(
    seen=(
        "touch the {thing} ball",
        "reach for the {thing} ball",
        "move your fingertips to the {thing} ball",
        "go to the {thing} ball",
        "bring the gripper to the ball that is {thing}",
    ),
    unseen=(
        "tap the {thing} ball",
        "of all the balls, get hold of the {thing} one",
        "place the tips of your fingers on the {thing} sphere",
    ),
)


class Parameters(Area, Wording):
    """What `[parameters]` of a reach `env.toml` may say; lengths in metres."""

    targets: Counts
    area_low: tuple[float, float, float]
    area_high: tuple[float, float, float]
    spacing: Annotated[float, Field(gt=0, le=0.15)]
    tolerance: Annotated[float, Field(ge=0.005, le=0.05)]
    start_noise: Annotated[float, Field(ge=0, le=0.06)]


def build(card: EnvironmentCard, parameters: Parameters) -> "Reach":
    return Reach(parameters, card.workspace)


class Reach(TableTask):
    """Ball 0 is the named one; which colour that is, the instruction says."""

    phrases = PHRASES
    parameters: Parameters

    def __init__(self, parameters: Parameters, workspace: Workspace) -> None:
        require_area(workspace, area=(parameters.area_low, parameters.area_high))
        self.parameters, self.start = parameters, np.array(workspace.start)

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        start = self.start + rng.uniform(-parameters.start_noise, parameters.start_noise, 3)
        scene.reset(start)
        count = int(rng.integers(parameters.targets[0], parameters.targets[1] + 1))
        places = scatter(
            rng, count, parameters.area_low, parameters.area_high, parameters.spacing, start[None], START_CLEARANCE
        )
        colours = rng.permutation(list(COLOURS)).tolist()
        self._balls = dict(zip(colours, BALLS[:count], strict=False))
        for name, place, colour in zip(BALLS, places, colours, strict=False):
            scene.place_fixture(name, place)
            scene.paint(name, COLOURS[colour])
        for name in BALLS[count:]:
            scene.place_fixture(name, STORE)
        self.words = {"thing": colours[0]}
        return self.say(rng, **self.words)

    def advance(self, scene: Scene) -> None:
        """Nothing moves by itself."""

    def satisfied(self, scene: Scene) -> bool:
        """The point between the fingertips is within `tolerance` of the named ball's centre."""
        return self._distance(scene) < self.parameters.tolerance

    def reward(self, scene: Scene) -> float:
        """1 / (1 + (d / 10 cm)^2), d being the distance from the fingertips to the named ball.

        It is smooth everywhere: 1 at the ball, 0.96 at 2 cm, 0.5 at 10 cm, 0.1 at 30 cm, where most episodes begin;
        its slope is at most 0.065 per centimetre, at 6 cm.
        """
        return closeness(self._distance(scene), REWARD_SCALE)

    def distances(self, scene: Scene) -> dict[str, float]:
        return {"fingertips_to_target": self._distance(scene)}

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The named ball, then the ball of each colour; there are no goals besides."""
        return landmarks(scene, (BALLS[0], None), by_kind(self._balls, list(COLOURS)), [])

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        colours = list(COLOURS)
        renamed, (named, _) = rename(landmarks, rng)
        return [self.say(rng, thing=colours[i]) for i in named], renamed

    def expert_action(self, scene: Scene) -> np.ndarray:
        """Straight to the ball, the fingers open around it."""
        return towards(scene, scene.position(BALLS[0]) - scene.fingertips(), 0.0, OPEN)

    @staticmethod
    def _distance(scene: Scene) -> float:
        return float(np.linalg.norm(scene.position(BALLS[0]) - scene.fingertips()))
