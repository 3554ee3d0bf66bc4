"""Pick and place: put the named object on the named target, among distractors."""

from typing import Annotated, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from mrvlm_sim.cards import Card
from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks.expert import GripperExpert

COLOURS = {
    "red": (0.80, 0.15, 0.12),
    "green": (0.15, 0.60, 0.20),
    "blue": (0.15, 0.28, 0.80),
    "yellow": (0.85, 0.72, 0.15),
}
OBJECTS = ("object0", "object1", "object2", "object3")
TARGETS = ("target0", "target1")
HALF_SIZE = 0.025  # of an object, metres
TARGET_HALF_SIZE = 0.05
RESTING_SPEED = 0.05  # metres per second


class Parameters(Card):
    """What `[parameters]` of a pick-and-place `env.toml` may say; lengths in metres, angles in radians."""

    objects: tuple[Annotated[int, Field(ge=1, le=4)], Annotated[int, Field(ge=1, le=4)]]
    area_low: tuple[float, float]
    area_high: tuple[float, float]
    spacing: Annotated[float, Field(gt=0, le=0.12)]
    max_yaw: Annotated[float, Field(ge=0)]
    start_noise: Annotated[float, Field(ge=0)]

    @field_validator("objects")
    @classmethod
    def _fewest_first(cls, objects: tuple[int, int]) -> tuple[int, int]:
        if objects[0] > objects[1]:
            raise ValueError("must be [fewest, most]")
        return objects

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not (self.area_low[0] < self.area_high[0] and self.area_low[1] < self.area_high[1]):
            raise ValueError(f"area_low must lie below area_high on both axes: {self.area_low}, {self.area_high}")
        return self


def build(card: EnvironmentCard, parameters: Parameters) -> "PickPlace":
    return PickPlace(parameters, card.workspace.start)


def instruction(object_colour: str, target_colour: str) -> str:
    return f"put the {object_colour} cube on the {target_colour} pad"


class PickPlace:
    """Body 0 of each kind is the named one; which colour that is, the instruction says."""

    def __init__(self, parameters: Parameters, start: tuple[float, float, float]) -> None:
        self.parameters, self.start = parameters, np.array(start)
        self.expert = GripperExpert(OBJECTS[0], TARGETS[0], HALF_SIZE)

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        scene.reset(self.start + rng.uniform(-parameters.start_noise, parameters.start_noise, 3))
        count = int(rng.integers(parameters.objects[0], parameters.objects[1] + 1))
        places = self._scatter(rng, len(TARGETS) + count)
        object_colours, target_colours = (rng.permutation(list(COLOURS)).tolist() for _ in range(2))
        self._objects = dict(zip(object_colours, OBJECTS[:count], strict=False))
        self._targets = dict(zip(target_colours, TARGETS, strict=False))
        for name, place, colour in zip(TARGETS, places, target_colours, strict=False):
            scene.place_fixture(name, np.array([*place, 0.0005]))
            scene.paint(name, COLOURS[colour])
        yaws = rng.uniform(-parameters.max_yaw, parameters.max_yaw, count)
        for name, place, yaw, colour in zip(OBJECTS, places[len(TARGETS) :], yaws, object_colours, strict=False):
            scene.place_object(name, np.array([*place, HALF_SIZE]), yaw)
            scene.paint(name, COLOURS[colour])
        for slot, name in enumerate(OBJECTS[count:]):
            scene.store_object(name, slot)
        return instruction(object_colours[0], target_colours[0])

    def satisfied(self, scene: Scene) -> bool:
        """The named object rests flat on the named target and no finger touches it."""
        offset = scene.position(OBJECTS[0]) - scene.position(TARGETS[0])
        on_target = np.abs(offset[:2]).max() < TARGET_HALF_SIZE and abs(offset[2] - HALF_SIZE) < 0.008
        at_rest = scene.speed(OBJECTS[0]) < RESTING_SPEED
        return bool(on_target and at_rest and scene.fingers_touching(OBJECTS[0]) == 0)

    def distances(self, scene: Scene) -> dict[str, float]:
        thing, target = scene.position(OBJECTS[0]), scene.position(TARGETS[0])
        return {
            "fingertips_to_object": float(np.linalg.norm(thing - scene.fingertips())),
            "object_to_target": float(np.linalg.norm(thing[:2] - target[:2])),
        }

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The named object and target, then the object and the target of each colour."""
        places = [scene.position(OBJECTS[0]), scene.position(TARGETS[0])]
        absent = np.full(3, np.nan)
        for painted in (self._objects, self._targets):
            places += [scene.position(painted[colour]) if colour in painted else absent for colour in COLOURS]
        return (np.stack(places) - scene.fingertips()).astype(np.float32)

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        colours, scenes = list(COLOURS), np.arange(len(landmarks))
        named = []
        for first in (2, 2 + len(colours)):  # where the landmarks of each kind begin
            there = ~np.isnan(landmarks[:, first : first + len(colours), 0])
            named.append(np.argmax(rng.random(there.shape) * there, axis=1))
        relabelled = landmarks.copy()
        relabelled[:, 0] = landmarks[scenes, 2 + named[0]]
        relabelled[:, 1] = landmarks[scenes, 2 + len(colours) + named[1]]
        return [instruction(colours[i], colours[j]) for i, j in zip(*named, strict=True)], relabelled

    def expert_action(self, scene: Scene) -> np.ndarray:
        return self.expert.action(scene)

    def _scatter(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random places (count, 2) on the table, no two closer than the spacing."""
        low, high = np.array(self.parameters.area_low), np.array(self.parameters.area_high)
        for _ in range(1000):
            places: list[np.ndarray] = []
            for _ in range(200):
                place = rng.uniform(low, high)
                if all(np.linalg.norm(place - other) >= self.parameters.spacing for other in places):
                    places.append(place)
                if len(places) == count:
                    return np.array(places)
        raise UserError(
            f"{count} objects and targets do not fit {self.parameters.spacing} m apart between "
            f"{self.parameters.area_low} and {self.parameters.area_high}; enlarge the area or lower the spacing"
        )
