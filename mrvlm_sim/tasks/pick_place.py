"""Pick and place: put the named object on the named target, among distractors."""

from typing import Annotated

import numpy as np
from pydantic import Field

from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks.expert import GripperExpert
from mrvlm_sim.tasks.tabletop import (
    COLOURS,
    Area,
    Counts,
    Phrases,
    TableTask,
    Wording,
    by_kind,
    landmarks,
    rename,
    scatter,
)

OBJECTS = ("object0", "object1", "object2", "object3")
TARGETS = ("target0", "target1")
HALF_SIZE = 0.025  # of an object, metres
TARGET_HALF_SIZE = 0.05
RESTING_SPEED = 0.05  # metres per second
PHRASES = Phrases(
    seen=(
        "put the {thing} cube on the {goal} pad",
        "place the {thing} cube on the {goal} pad",
        "move the {thing} cube over to the {goal} pad",
        "the {thing} cube belongs on the {goal} pad",
        "bring the {goal} pad the {thing} cube",
    ),
    unseen=(
        "find the {thing} cube and leave it on the {goal} pad",
        "on the {goal} pad should lie the {thing} cube",
    ),
)


class Parameters(Area, Wording):
    """What `[parameters]` of a pick-and-place `env.toml` may say; lengths in metres, angles in radians."""

    objects: Counts
    area_low: tuple[float, float]
    area_high: tuple[float, float]
    spacing: Annotated[float, Field(gt=0, le=0.12)]
    max_yaw: Annotated[float, Field(ge=0)]
    start_noise: Annotated[float, Field(ge=0)]
    paraphrases: bool = False  # or always the first phrase


def build(card: EnvironmentCard, parameters: Parameters) -> "PickPlace":
    return PickPlace(parameters, card.workspace.start)


class PickPlace(TableTask):
    """Body 0 of each kind is the named one; which colour that is, the instruction says."""

    phrases = PHRASES
    parameters: Parameters

    def __init__(self, parameters: Parameters, start: tuple[float, float, float], half_size: float = HALF_SIZE) -> None:
        self.parameters, self.start, self.half_size = parameters, np.array(start), half_size
        self.expert = GripperExpert(OBJECTS[0], TARGETS[0], half_size)

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        scene.reset(self.start + rng.uniform(-parameters.start_noise, parameters.start_noise, 3))
        count = int(rng.integers(parameters.objects[0], parameters.objects[1] + 1))
        places = self._places(scene, rng, count)
        object_colours, target_colours = (rng.permutation(list(COLOURS)).tolist() for _ in range(2))
        self._objects = dict(zip(object_colours, OBJECTS[:count], strict=False))
        self._targets = dict(zip(target_colours, TARGETS, strict=False))
        for name, place, colour in zip(TARGETS, places, target_colours, strict=False):
            scene.place_fixture(name, np.array([*place, 0.0005]))
            scene.paint(name, COLOURS[colour])
        yaws = rng.uniform(-parameters.max_yaw, parameters.max_yaw, count)
        for name, place, yaw, colour in zip(OBJECTS, places[len(TARGETS) :], yaws, object_colours, strict=False):
            scene.place_object(name, np.array([*place, self.half_size]), yaw)
            scene.paint(name, COLOURS[colour])
        for slot, name in enumerate(OBJECTS[count:]):
            scene.store_object(name, slot)
        self.words = {"thing": object_colours[0], "goal": target_colours[0]}
        return self.say(rng, **self.words)

    def _places(self, scene: Scene, rng: np.random.Generator, count: int) -> np.ndarray:
        """Where the targets and `count` objects stand, (targets + count, 2) in metres."""
        low, high = self.parameters.area_low, self.parameters.area_high
        return scatter(rng, len(TARGETS) + count, low, high, self.parameters.spacing)

    def say(self, rng: np.random.Generator, **words: str) -> str:
        parameters = self.parameters
        if parameters.paraphrases or parameters.unseen_phrases or parameters.phrase is not None:
            return super().say(rng, **words)
        return PHRASES.seen[0].format(**words)

    def advance(self, scene: Scene) -> None:
        """Nothing moves by itself."""

    def satisfied(self, scene: Scene) -> bool:
        """The named object rests flat on the named target and no finger touches it."""
        offset = scene.position(OBJECTS[0]) - scene.position(TARGETS[0])
        on_target = np.abs(offset[:2]).max() < TARGET_HALF_SIZE and abs(offset[2] - self.half_size) < 0.008
        at_rest = scene.speed(OBJECTS[0]) < RESTING_SPEED
        return bool(on_target and at_rest and scene.fingers_touching(OBJECTS[0]) == 0)

    def reward(self, scene: Scene) -> float:
        """Half for the way of the fingertips to the object, half for that of the object to the target."""
        distances = self.distances(scene)
        near, there = distances["fingertips_to_object"], distances["object_to_target"]
        return 0.5 * float(np.exp(-near / 0.1)) + 0.5 * float(np.exp(-there / 0.1))

    def distances(self, scene: Scene) -> dict[str, float]:
        thing, target = scene.position(OBJECTS[0]), scene.position(TARGETS[0])
        return {
            "fingertips_to_object": float(np.linalg.norm(thing - scene.fingertips())),
            "object_to_target": float(np.linalg.norm(thing[:2] - target[:2])),
        }

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The named object and target, then the object and the target of each colour."""
        colours = list(COLOURS)
        return landmarks(
            scene, (OBJECTS[0], TARGETS[0]), by_kind(self._objects, colours), by_kind(self._targets, colours)
        )

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        colours = list(COLOURS)
        renamed, named = rename(landmarks, rng)
        return [self.say(rng, thing=colours[i], goal=colours[j]) for i, j in zip(*named, strict=True)], renamed

    def expert_action(self, scene: Scene) -> np.ndarray:
        return self.expert.action(scene)
