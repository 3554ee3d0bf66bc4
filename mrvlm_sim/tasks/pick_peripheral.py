"""Pick and place of small objects that start at a chosen eccentricity: far from where the wrist camera looks."""

from itertools import product
from typing import Annotated, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.sim.sight import behind_robot, eccentricity, in_image
from mrvlm_sim.tasks import pick_place
from mrvlm_sim.tasks.pick_place import OBJECTS, TARGETS, PickPlace
from mrvlm_sim.tasks.tabletop import require_area, scatter

CAMERA = "wrist"
Angle = Annotated[float, Field(ge=0, le=52)]  # degrees; the camera's field of view is 104
CANDIDATES = 2000  # for the objects' places
ATTEMPTS = 1000  # at finding places for everything
AROUND = np.array([*product((-1, 1), repeat=3)]) * [2**0.5, 2**0.5, 1]  # corners of a cube, however it is turned


class Parameters(pick_place.Parameters):
    """What `[parameters]` may say; lengths in metres, angles in radians, the eccentricity in degrees.

    `eccentricity` is how far off the wrist camera's optical axis the centre of every object starts, [least, most];
    `objects_low` and `objects_high` bound where on the table that may be, `area_low` and `area_high` the targets.
    """

    half_size: Annotated[float, Field(ge=0.01, le=0.025)]
    eccentricity: tuple[Angle, Angle]
    objects_low: tuple[float, float]
    objects_high: tuple[float, float]
    spacing: Annotated[float, Field(ge=0.08, le=0.12)]  # nearer, an object could start on its target
    max_yaw: Annotated[float, Field(ge=0, le=0.8)]
    start_noise: Annotated[float, Field(ge=0, le=0.06)]
    paraphrases: bool = True

    @field_validator("eccentricity")
    @classmethod
    def _least_first(cls, angles: tuple[float, float]) -> tuple[float, float]:
        if angles[0] >= angles[1]:
            raise ValueError("must be [least, most], the least being smaller")
        return angles

    @model_validator(mode="after")
    def _objects_in_order(self) -> Self:
        low, high = self.objects_low, self.objects_high
        if not (low[0] < high[0] and low[1] < high[1]):
            raise ValueError(f"objects_low must lie below objects_high on both axes: {low}, {high}")
        return self


def build(card: EnvironmentCard, parameters: Parameters) -> "PickPeripheral":
    require_area(card.workspace, objects=(parameters.objects_low, parameters.objects_high))
    require_area(card.workspace, area=(parameters.area_low, parameters.area_high))
    return PickPeripheral(parameters, card.workspace.start, parameters.half_size)


class PickPeripheral(PickPlace):
    """Distractors start as far out as the named object does, so that its place does not give it away."""

    parameters: Parameters

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        for name in OBJECTS:
            scene.resize_cube(name, self.half_size)
        return super().reset(scene, rng)

    def _places(self, scene: Scene, rng: np.random.Generator, count: int) -> np.ndarray:
        scene.update_poses()  # the arm has just been put elsewhere, and the camera with it
        spacing, candidates = self.parameters.spacing, self._candidates(scene, rng)
        for _ in range(ATTEMPTS):
            targets = scatter(rng, len(TARGETS), self.parameters.area_low, self.parameters.area_high, spacing)
            objects = self._choose(scene, rng.permutation(candidates), count, targets)
            if len(objects) == count:
                return np.concatenate([targets, rng.permutation(objects)])
        raise UserError(
            f"{count} objects do not fit {spacing} m apart at {list(self.parameters.eccentricity)} degrees of "
            f"eccentricity between {self.parameters.objects_low} and {self.parameters.objects_high}; "
            "widen one of them, or lower the spacing"
        )

    def _candidates(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """Random places (n, 2) where an object is in the image as a whole, at the eccentricity that is asked for."""
        places = rng.uniform(self.parameters.objects_low, self.parameters.objects_high, (CANDIDATES, 2))
        angles = eccentricity(scene, CAMERA, np.insert(places, 2, self.half_size, axis=1))
        inside = np.abs(in_image(scene, CAMERA, self._corners(places))).max(axis=(1, 2)) <= 1
        least, most = self.parameters.eccentricity
        return places[inside & (least <= angles) & (angles <= most)]

    def _choose(self, scene: Scene, free: np.ndarray, count: int, taken: np.ndarray) -> np.ndarray:
        """The first of the places (n, 2), up to `count`, that are in plain view and apart from what is taken."""
        chosen: list[np.ndarray] = []
        for place in taken:
            free = self._apart(free, place)
        while len(free) and len(chosen) < count:
            place, free = free[0], free[1:]
            if not behind_robot(scene, CAMERA, self._corners(place)):
                chosen.append(place)
                free = self._apart(free, place)
        return np.array(chosen)

    def _apart(self, places: np.ndarray, taken: np.ndarray) -> np.ndarray:
        return places[np.linalg.norm(places - taken, axis=1) >= self.parameters.spacing]

    def _corners(self, places: np.ndarray) -> np.ndarray:
        """Corners (..., 8, 3) of a box around an object at each of the places (..., 2), however it is turned."""
        centres = np.insert(places, 2, self.half_size, axis=-1)
        return centres[..., None, :] + self.half_size * AROUND
