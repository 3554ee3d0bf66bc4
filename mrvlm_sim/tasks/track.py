"""Track: keep the gripper over the named disc while it moves among others."""

from typing import Annotated

import numpy as np
from pydantic import Field

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import STORE, Scene
from mrvlm_sim.tasks.expert import OPEN, towards
from mrvlm_sim.tasks.paths import STEP, Path, draw_path
from mrvlm_sim.tasks.tabletop import (
    COLOURS,
    FEWEST_FIRST,
    Area,
    Phrases,
    TableTask,
    Wording,
    by_kind,
    landmarks,
    rename,
)

DISC_RADIUS = 0.03  # metres
DISCS = ("disc0", "disc1", "disc2", "disc3")
HOVER = 0.05  # metres above the table at which the expert follows
HEAD_START = 0.12  # metres from the fingertips, sideways, at which the named disc begins, at least: over any tolerance
LAYER = 0.0006  # metres between discs that pass over each other
CANDIDATES = 30  # paths of which a distractor takes the one that keeps furthest from the others
PHRASES = Phrases(
    seen=(
        "follow the {thing} disc",
        "keep the gripper over the {thing} disc",
        "stay above the {thing} disc as it moves",
        "track the {thing} disc",
    ),
    unseen=("hover over the moving {thing} circle", "do not let the {thing} disc get away from under you"),
)

Count = Annotated[int, Field(ge=1, le=len(DISCS))]
X = Annotated[float, Field(ge=0.30, le=0.68)]
Y = Annotated[float, Field(ge=-0.32, le=0.32)]


class Parameters(Area, Wording):
    """What `[parameters]` of a tracking `env.toml` may say; lengths in metres, speeds in metres per second."""

    discs: Annotated[tuple[Count, Count], FEWEST_FIRST]
    speed: Annotated[float, Field(ge=0, le=1)]
    tolerance: Annotated[float, Field(ge=0.002, le=0.1)]
    area_low: tuple[X, Y]
    area_high: tuple[X, Y]
    start_noise: Annotated[float, Field(ge=0, le=0.05)]


def build(card: EnvironmentCard, parameters: Parameters) -> "Track":
    return Track(parameters, card.workspace.start, card.max_steps / card.control_hz)


class Track(TableTask):
    """Disc 0 is the named one; which colour that is, the instruction says. Where a disc is follows from the time."""

    phrases = PHRASES
    parameters: Parameters

    def __init__(self, parameters: Parameters, start: tuple[float, float, float], seconds: float) -> None:
        self.parameters, self.start, self.seconds = parameters, np.array(start), seconds

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        start = self.start + rng.uniform(-parameters.start_noise, parameters.start_noise, 3)
        scene.reset(start)
        count = int(rng.integers(parameters.discs[0], parameters.discs[1] + 1))
        colours = rng.permutation(list(COLOURS)).tolist()[:count]
        self._colours = dict(zip(colours, DISCS, strict=False))
        self._paths = [self._path_away_from(start[:2], rng)]
        for _ in range(count - 1):
            self._paths.append(self._path_apart(rng))
        self._heights = LAYER * (1 + rng.permutation(count))  # whichever disc passes over another
        for name, colour in zip(DISCS, colours, strict=False):
            scene.paint(name, COLOURS[colour])
        for slot, name in enumerate(DISCS[count:]):
            scene.place_mocap(name, STORE + np.array([0, 0.1 * slot, 0]))
        self._place(scene, scene.data.time)
        self.words = {"thing": colours[0]}
        return self.say(rng, **self.words)

    def advance(self, scene: Scene) -> None:
        """Put the discs where they will be at the end of this step, so that every observation has them in place."""
        self._place(scene, self._next_time(scene))

    def satisfied(self, scene: Scene) -> bool:
        """The fingertips are over the named disc, at any height: no further off sideways than the tolerance."""
        return self.distances(scene)["fingertips_to_disc"] < self.parameters.tolerance

    def reward(self, scene: Scene) -> float:
        """1 right over the disc's centre, a third of that every 0.11 m further off sideways."""
        return float(np.exp(-self.distances(scene)["fingertips_to_disc"] / 0.1))

    def distances(self, scene: Scene) -> dict[str, float]:
        """Sideways, in metres."""
        offset = (scene.position(DISCS[0]) - scene.fingertips())[:2]
        return {"fingertips_to_disc": float(np.linalg.norm(offset))}

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The named disc, no goal, then the disc of each colour."""
        return landmarks(scene, (DISCS[0], None), by_kind(self._colours, list(COLOURS)), [])

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        colours = list(COLOURS)
        renamed, (named, _) = rename(landmarks, rng)
        return [self.say(rng, thing=colours[i]) for i in named], renamed

    def expert_action(self, scene: Scene) -> np.ndarray:
        """To where the disc will be at the end of this step."""
        ahead = self._paths[0].at(self._next_time(scene))
        here = scene.fingertips()
        return towards(scene, np.array([*ahead, HOVER]) - here, 0.0, OPEN)

    @staticmethod
    def _next_time(scene: Scene) -> float:
        """The time at the end of this control step, in seconds since reset."""
        return float(scene.data.time + scene.substeps * scene.model.opt.timestep)

    def paths(self) -> np.ndarray:
        times = np.arange(0, self.seconds, STEP)
        places = np.concatenate([path.at(times) for path in self._paths])
        return np.insert(places, 2, DISC_RADIUS, axis=1)

    def _place(self, scene: Scene, time: float) -> None:
        for name, path, height in zip(DISCS, self._paths, self._heights, strict=False):
            scene.place_mocap(name, np.array([*path.at(time), height]))

    def _path(self, rng: np.random.Generator) -> Path:
        return draw_path(rng, self.parameters.area_low, self.parameters.area_high, self.parameters.speed)

    def _path_apart(self, rng: np.random.Generator) -> Path:
        """A path on which a disc seldom meets one of those before it."""
        return max((self._path(rng) for _ in range(CANDIDATES)), key=lambda path: path.gap(self._paths, self.seconds))

    def _path_away_from(self, place: np.ndarray, rng: np.random.Generator) -> Path:
        for _ in range(1000):
            path = self._path(rng)
            if np.linalg.norm(path.at(0.0) - place) > HEAD_START:
                return path
        low, high = self.parameters.area_low, self.parameters.area_high
        rule = f"the named disc must begin more than {HEAD_START} m from the fingertips"
        raise UserError(f"{rule}, which the area from {low} to {high} does not allow; enlarge it")
