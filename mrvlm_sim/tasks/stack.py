"""Stack: put the named cube on another named cube, centred, and let go of it."""

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks.expert import GripperExpert
from mrvlm_sim.tasks.tabletop import (
    COLOURS,
    FEWEST_FIRST,
    GOALS,
    KINDS,
    THINGS,
    Area,
    Phrases,
    TableTask,
    Wording,
    by_kind,
    landmarks,
    require_area,
    scatter,
)

CUBES = ("cube0", "cube1", "cube2", "cube3")
THING, GOAL = CUBES[:2]
RESTING_SPEED = 0.05  # metres per second
LEVEL = 0.004  # metres that the upper cube's height may be off
# A colour's neighbours say which cube is meant, as policies may read words and pairs of words only.
PHRASES = Phrases(
    seen=(
        "stack the {thing} cube on {goal}",
        "put {thing} on the {goal} cube",
        "place the {thing} cube on top of {goal}",
        "set {thing} on top of {goal}",
        "with the {goal} cube below, {thing} on top",
    ),
    unseen=(
        "build a tower, {thing} on {goal}",
        "move the {thing} cube so that it stands on {goal}",
    ),
)
Count = Annotated[int, Field(ge=2, le=4)]


class Parameters(Area, Wording):
    """What `[parameters]` of a stacking `env.toml` may say; lengths in metres, angles in radians."""

    cubes: Annotated[tuple[Count, Count], FEWEST_FIRST]
    half_size: Annotated[float, Field(ge=0.012, le=0.03)]
    tolerance: Annotated[float, Field(ge=0.003, le=0.03)]
    area_low: tuple[float, float]
    area_high: tuple[float, float]
    spacing: Annotated[float, Field(gt=0, le=0.14)]
    max_yaw: Annotated[float, Field(ge=0, le=0.8)]
    start_noise: Annotated[float, Field(ge=0, le=0.06)]

    @model_validator(mode="after")
    def _cubes_apart(self) -> Self:
        if self.spacing < 3 * self.half_size:
            raise ValueError(
                f"spacing must be at least 3 half_size, lest cubes touch: {self.spacing}, {self.half_size}"
            )
        return self


def build(card: EnvironmentCard, parameters: Parameters) -> "Stack":
    require_area(card.workspace, area=(parameters.area_low, parameters.area_high))
    return Stack(parameters, card.workspace.start)


class Stack(TableTask):
    """Cube 0 goes on cube 1; which colours those are, the instruction says."""

    phrases = PHRASES
    parameters: Parameters

    def __init__(self, parameters: Parameters, start: tuple[float, float, float]) -> None:
        self.parameters, self.start = parameters, np.array(start)
        size = parameters.half_size
        self.expert = GripperExpert(THING, GOAL, size, precision=0.6 * parameters.tolerance, above=2 * size)

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        for name in CUBES:
            scene.resize_cube(name, parameters.half_size)
        scene.reset(self.start + rng.uniform(-parameters.start_noise, parameters.start_noise, 3))
        count = int(rng.integers(parameters.cubes[0], parameters.cubes[1] + 1))
        places = scatter(rng, count, parameters.area_low, parameters.area_high, parameters.spacing)
        yaws = rng.uniform(-parameters.max_yaw, parameters.max_yaw, count)
        colours = rng.permutation(list(COLOURS)).tolist()
        self._cubes = dict(zip(colours, CUBES[:count], strict=False))
        for name, place, yaw, colour in zip(CUBES, places, yaws, colours, strict=False):
            scene.place_object(name, np.array([*place, parameters.half_size]), yaw)
            scene.paint(name, COLOURS[colour])
        for slot, name in enumerate(CUBES[count:]):
            scene.store_object(name, slot)
        self.words = {"thing": colours[0], "goal": colours[1]}
        return self.say(rng, **self.words)

    def advance(self, scene: Scene) -> None:
        """Nothing moves by itself."""

    def satisfied(self, scene: Scene) -> bool:
        """The named cube rests centred on the other, which stands on the table, and no finger touches it."""
        distances = self.distances(scene)
        centred = distances["off_centre"] < self.parameters.tolerance and distances["off_height"] < LEVEL
        standing = abs(scene.position(GOAL)[2] - self.parameters.half_size) < LEVEL
        at_rest = max(scene.speed(THING), scene.speed(GOAL)) < RESTING_SPEED
        return bool(centred and standing and at_rest and scene.fingers_touching(THING) == 0)

    def reward(self, scene: Scene) -> float:
        """1 when stacked; before, up to 0.4 each for the fingertips near the cube and for the cube near its place."""
        if self.satisfied(scene):
            return 1.0
        distances = self.distances(scene)
        near, there = distances["fingertips_to_cube"], np.hypot(distances["off_centre"], distances["off_height"])
        return 0.4 * float(np.exp(-near / 0.1)) + 0.4 * float(np.exp(-there / 0.1))

    def distances(self, scene: Scene) -> dict[str, float]:
        """`off_centre` and `off_height`: how far the cube is from its place on the other, sideways and in height."""
        thing, goal = scene.position(THING), scene.position(GOAL)
        return {
            "fingertips_to_cube": float(np.linalg.norm(thing - scene.fingertips())),
            "off_centre": float(np.linalg.norm(thing[:2] - goal[:2])),
            "off_height": float(abs(thing[2] - goal[2] - 2 * self.parameters.half_size)),
        }

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The cube to stack and the one below, then the cube of each colour, once as either."""
        cubes = by_kind(self._cubes, list(COLOURS))
        return landmarks(scene, (THING, GOAL), cubes, cubes)

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        colours, renamed = list(COLOURS), landmarks.copy()
        things, goals = two_kinds(~np.isnan(landmarks[:, THINGS : THINGS + KINDS, 0]), rng)
        scenes = np.arange(len(landmarks))
        renamed[:, 0], renamed[:, 1] = landmarks[scenes, THINGS + things], landmarks[scenes, GOALS + goals]
        pairs = zip(things, goals, strict=True)
        return [self.say(rng, thing=colours[i], goal=colours[j]) for i, j in pairs], renamed

    def expert_action(self, scene: Scene) -> np.ndarray:
        return self.expert.action(scene)


def two_kinds(there: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """For B scenes, two different kinds at random among those that are there, bool (B, KINDS), two or more."""
    order = np.argsort(-rng.random(there.shape) * there, axis=1)
    return order[:, 0], order[:, 1]
