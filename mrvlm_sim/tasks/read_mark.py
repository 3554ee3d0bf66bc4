"""Read a mark: touch, among four plates, the one that bears the named mark. It measures acuity against eccentricity.

At the start, wherever the noise has put it, the wrist camera sees the four plates exactly `eccentricity` degrees off
its optical axis, all at the same distance and each facing it, so that a mark's lower and upper edges enclose
`mark_size` degrees at the camera's centre whatever the eccentricity. The hand covers the upper half of the picture; so
the plates stand on a fan over the lower half, turned at random, and the gripper is closed. Plates are alike, hang free
and give way. Chance level is 25 %: once a wrong plate was touched, the episode cannot succeed any more.

The camera is on the hand: who moves sees the marks grow. With `shown_steps = 1` only the first picture shows them.
"""

from typing import Annotated, Self

import mujoco
import numpy as np
from pydantic import Field, field_validator, model_validator

from mrvlm_sim.errors import unknown_name
from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks import tabletop
from mrvlm_sim.tasks.optotypes import CANVAS_SHARE, DIGITS, MARKS, SHAPES

CAMERA = "wrist"
PLATES = ("plate0", "plate1", "plate2", "plate3")  # from left to right
FAN = np.array([-168.0, -116.0, -64.0, -12.0])  # degrees in the picture, anticlockwise from the right
FAN_STEP = 52.0  # degrees between neighbours
FAN_TURN = 8.0  # degrees that the fan is turned either way at most
DISTANCE = 0.40  # metres from the camera's centre to every mark
HALF_FIELD = 51.0  # degrees from the axis to the frame's nearest edge, less one for safety
PLATE_SIZE = 6.0  # degrees, at least; more where a mark's picture needs it
HALF_TURN = np.array([0.0, 0.0, 1.0, 0.0])  # about a plate's upright axis, as a quaternion
APART = 2.2  # tolerances between the centres of neighbours, at least
FILLED = 0.7  # of the way to the neighbour, that a plate may fill: squares may meet corner to corner
FUNNEL = 0.1  # metres before its plate that the expert aims at, at most, while it is off to the side
PHRASES = tabletop.Phrases(
    seen=(
        "touch the plate with the {thing}",
        "touch the {thing}",
        "put your fingertips on the {thing}",
        "go to the plate that shows the {thing}",
        "point at the {thing}",
    ),
    unseen=("find the {thing} and touch it", "reach for the plate marked with the {thing}"),
)


def plate_spacing(eccentricity: float) -> float:
    """Metres between the centres of neighbouring plates."""
    return 2 * DISTANCE * float(np.sin(np.radians(eccentricity)) * np.sin(np.radians(FAN_STEP / 2)))


def largest_mark(eccentricity: float) -> float:
    """Degrees, the largest mark whose plates fit beside each other and into the frame."""
    widest = FILLED * np.degrees(2 * np.arcsin(plate_spacing(eccentricity) / DISTANCE / 2))
    return float(min(widest, 2 * (HALF_FIELD - eccentricity)) / CANVAS_SHARE)


class Parameters(tabletop.Wording):
    """What `[parameters]` of a `read_mark` `env.toml` may say; lengths in metres, angles in degrees."""

    mark_size: Annotated[float, Field(ge=0.1, le=10)]  # between a mark's lower and upper edge, at the start
    eccentricity: Annotated[float, Field(ge=10, le=45)]  # of plates' centres from the optical axis, at the start
    tolerance: Annotated[float, Field(gt=0, le=0.05)]  # between fingertips and a plate's centre
    marks: Annotated[tuple[str, ...], Field(min_length=4)]  # that occur
    shown_steps: Annotated[int, Field(ge=0)] = 0  # observations in which marks are seen; 0: all
    start_noise: Annotated[float, Field(ge=0, le=0.02)]

    @field_validator("marks")
    @classmethod
    def _known_marks(cls, marks: tuple[str, ...]) -> tuple[str, ...]:
        for mark in marks:
            if mark not in MARKS:
                raise ValueError(str(unknown_name("mark", mark, MARKS)))
        if len(set(marks)) < len(marks):
            raise ValueError("every mark must be named only once")
        return marks

    @model_validator(mode="after")
    def _plates_fit(self) -> Self:
        largest, spacing = largest_mark(self.eccentricity), plate_spacing(self.eccentricity)
        where = f"at an eccentricity of {self.eccentricity:g} degrees"
        if self.mark_size > largest:
            raise ValueError(f"{where} mark_size must be at most {largest:.2f} degrees, not {self.mark_size:g}")
        if APART * self.tolerance > spacing:
            most = spacing / APART
            raise ValueError(f"{where} tolerance must be at most {most:.4f} metres, not {self.tolerance:g}")
        return self


def build(card: EnvironmentCard, parameters: Parameters) -> "ReadMark":
    return ReadMark(parameters, card.workspace.start, card.control_hz)


def span(degrees: float) -> float:
    """Metres at DISTANCE, across the line of sight and centred on it, that subtend an angle."""
    return 2 * DISTANCE * float(np.tan(np.radians(degrees) / 2))


class ReadMark(tabletop.TableTask):
    """Which plate bears which mark is drawn anew; the instruction names one of the four marks."""

    phrases = PHRASES
    parameters: Parameters

    def __init__(self, parameters: Parameters, start: tuple[float, float, float], rate: float) -> None:
        self.parameters, self.start, self.rate = parameters, np.array(start), rate

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        noise = rng.uniform(-parameters.start_noise, parameters.start_noise, 3)
        scene.reset(self.start + noise, opening=0.0)
        scene.forward()
        self._eye = scene.data.camera(CAMERA).xpos.copy()
        self._size(scene)
        self._face_camera(scene, np.radians(FAN + rng.uniform(-FAN_TURN, FAN_TURN)))
        marks = rng.permutation(list(parameters.marks))[: len(PLATES)].tolist()
        self._bearers = dict(zip(marks, PLATES, strict=True))
        for i, mark in enumerate(marks):
            scene.model.geom(f"mark{i}").matid = scene.model.material(mark).id
        named = marks[int(rng.integers(len(marks)))]
        self._named = self._bearers[named]
        self._others = [plate for plate in PLATES if plate != self._named]
        self.words = {"thing": named}
        return self.say(rng, **self.words)

    @property
    def shown(self) -> list[str]:
        """The marks on the plates, from left to right."""
        return list(self._bearers)

    def advance(self, scene: Scene) -> None:
        """Keep in mind that a wrong plate is touched, and turn the plates round when their time is over."""
        if self._to_others(scene) < self.parameters.tolerance:
            scene.data.userdata[0] = 1
        following = 1 + round(scene.data.time * self.rate)  # observation, counted from 0
        if 0 < self.parameters.shown_steps <= following:
            scene.data.mocap_quat[:] = self._backs

    def satisfied(self, scene: Scene) -> bool:
        """The fingertips are at the named plate, and never were at another."""
        return not self._missed(scene) and self._to_named(scene) < self.parameters.tolerance

    def reward(self, scene: Scene) -> float:
        """The nearness of the fingertips to the named plate; 0 for ever after a wrong touch."""
        return 0.0 if self._missed(scene) else float(np.exp(-self._to_named(scene) / 0.1))

    def distances(self, scene: Scene) -> dict[str, float]:
        return {"fingertips_to_plate": self._to_named(scene), "fingertips_to_others": self._to_others(scene)}

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The named plate, then those of each mark: shapes stand in the rows of things, digits in those of goals."""
        kinds = [tabletop.by_kind(self._bearers, marks) for marks in (SHAPES, DIGITS)]
        return tabletop.landmarks(scene, (self._named, None), *kinds)

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        there = ~np.isnan(landmarks[:, tabletop.THINGS :, 0])
        named = np.argmax(rng.random(there.shape) * there, axis=1)
        renamed = landmarks.copy()
        renamed[:, 0] = landmarks[np.arange(len(landmarks)), tabletop.THINGS + named]
        return [self.say(rng, thing=MARKS[i]) for i in named], renamed

    def expert_action(self, scene: Scene) -> np.ndarray:
        """Straight ahead when before the named plate; from the side, to a point before it, clear of its neighbours."""
        plate = scene.position(self._named)
        way, front = plate - scene.fingertips(), (self._eye - plate) / DISTANCE
        aside = float(np.linalg.norm(way - way @ front * front))
        step = (way + front * min(FUNNEL, aside)) / scene.arm.scale.translation
        return np.array([*step / max(1.0, np.abs(step).max()), 0.0, -1.0], dtype=np.float32)

    def _size(self, scene: Scene) -> None:
        """Make the mark's picture as large as the mark must be, and the paper behind it no smaller."""
        picture = CANVAS_SHARE * span(self.parameters.mark_size)
        for i in range(len(PLATES)):
            scene.model.geom(f"mark{i}").size[:2] = picture / 2
            scene.model.geom(f"paper{i}").size[:2] = max(picture, span(PLATE_SIZE)) / 2

    def _face_camera(self, scene: Scene, angles: np.ndarray) -> None:
        """Put the plates in these directions of the picture, each turned the shortest way from the camera's axes."""
        data, aside = scene.data, np.radians(self.parameters.eccentricity)
        camera, turned, line = np.empty(4), np.empty(4), np.empty(3)
        mujoco.mju_mat2Quat(camera, data.camera(CAMERA).xmat)
        self._backs = np.empty((len(PLATES), 4))
        for i, angle in enumerate(angles):
            turn = np.array([np.cos(aside / 2), *np.sin(aside / 2) * np.array([np.sin(angle), -np.cos(angle), 0])])
            mujoco.mju_mulQuat(turned, camera, turn)
            mujoco.mju_rotVecQuat(line, np.array([0.0, 0.0, -DISTANCE]), turned)
            data.mocap_pos[i], data.mocap_quat[i] = self._eye + line, turned
            mujoco.mju_mulQuat(self._backs[i], turned, HALF_TURN)

    def _missed(self, scene: Scene) -> bool:
        return bool(scene.data.userdata[0])

    def _to_named(self, scene: Scene) -> float:
        return float(np.linalg.norm(scene.position(self._named) - scene.fingertips()))

    def _to_others(self, scene: Scene) -> float:
        return min(float(np.linalg.norm(scene.position(plate) - scene.fingertips())) for plate in self._others)
