"""Peg insertion: put the peg into the hole of the named block, among blocks of other colours.

The peg is a cube, so that a dropped one can be picked up again and goes in whichever face is below. It begins in the
fingers, since what is judged is how exactly it is brought to the hole.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import STORE, Scene
from mrvlm_sim.tasks.peg_expert import PegExpert
from mrvlm_sim.tasks.peg_geometry import GRIP, PEG, PEG_HALF, RIM, Block, tip
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
    scatter,
)

BLOCKS = ("block0", "block1", "block2")
DEPTH = 0.015  # metres below the rim at which the peg is in; the hole is 0.025 deep
BESIDE = 0.08  # metres, sideways, between the fingertips and any block at the start
PLAY = 0.001  # metres by which contacts may give way
PHRASES = Phrases(
    seen=(
        "put the peg into the hole in the {goal} block",
        "insert the peg into the {goal} block",
        "the peg goes into the {goal} block",
        "push the peg down into the hole of the {goal} block",
    ),
    unseen=("plug the {goal} block with the peg", "fit the peg in the opening of the {goal} block"),
)

Count = Annotated[int, Field(ge=1, le=len(BLOCKS))]
X = Annotated[float, Field(ge=0.36, le=0.62)]
Y = Annotated[float, Field(ge=-0.26, le=0.26)]


class Parameters(Area, Wording):
    """What `[parameters]` of a peg-insertion `env.toml` may say; lengths in metres, angles in radians."""

    clearance: Annotated[float, Field(ge=0.0005, le=0.01)]
    blocks: Annotated[tuple[Count, Count], FEWEST_FIRST]
    area_low: tuple[X, Y]
    area_high: tuple[X, Y]
    spacing: Annotated[float, Field(ge=0.13, le=0.15)]
    max_yaw: Annotated[float, Field(ge=0, le=0.5)]
    grip_noise: Annotated[float, Field(ge=0, le=0.005)]
    start_noise: Annotated[float, Field(ge=0, le=0.05)]


def build(card: EnvironmentCard, parameters: Parameters) -> "PegInsert":
    return PegInsert(parameters, card.workspace.start)


class PegInsert(TableTask):
    """Block 0 is the named one; which colour that is, the instruction says."""

    phrases = PHRASES
    parameters: Parameters

    def __init__(self, parameters: Parameters, start: tuple[float, float, float]) -> None:
        self.parameters, self.start = parameters, np.array(start)
        self.blocks = [Block(name, parameters.clearance) for name in BLOCKS]
        self.expert = PegExpert(self.blocks)

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        start = self.start + rng.uniform(-parameters.start_noise, parameters.start_noise, 3)
        scene.reset(start, opening=2 * PEG_HALF)
        count = int(rng.integers(parameters.blocks[0], parameters.blocks[1] + 1))
        places = self._places(count, start[:2], rng)
        yaws = rng.uniform(-parameters.max_yaw, parameters.max_yaw, count)
        colours = rng.permutation(list(COLOURS)).tolist()[:count]
        self._colours = dict(zip(colours, BLOCKS, strict=False))
        for block, place, yaw, colour in zip(self.blocks, places, yaws, colours, strict=False):
            block.place(scene, np.array([*place, RIM]), yaw)
            block.paint(scene, COLOURS[colour])
        for slot, block in enumerate(self.blocks[count:]):
            block.place(scene, STORE + np.array([0, 0.2 * slot, 0]), 0.0)
        self._into_the_fingers(scene, rng)
        self.words = {"goal": colours[0]}
        return self.say(rng, **self.words)

    def advance(self, scene: Scene) -> None:
        """Nothing moves by itself."""

    def satisfied(self, scene: Scene) -> bool:
        """The peg's tip is at least `DEPTH` below the rim and between the walls; held or released."""
        return self._depth(scene) >= DEPTH

    def reward(self, scene: Scene) -> float:
        """A quarter each for the ways of the fingertips to the peg and of its tip to the hole; half for the depth."""
        distances = self.distances(scene)
        near, there = distances["fingertips_to_peg"], distances["tip_to_hole"]
        depth = 1 - distances["depth_to_go"] / DEPTH
        return 0.25 * float(np.exp(-near / 0.1) + np.exp(-there / 0.1)) + 0.5 * depth

    def distances(self, scene: Scene) -> dict[str, float]:
        """The tip's is to the middle of the rim, or to the hole's axis further down; only depth in the hole counts."""
        depth, offset = self._depth(scene), tip(scene) - scene.position(BLOCKS[0])
        return {
            "fingertips_to_peg": float(np.linalg.norm(scene.position(PEG) - scene.fingertips())),
            "tip_to_hole": float(np.linalg.norm(offset[:2] if depth > 0 else offset)),
            "depth_to_go": max(0.0, DEPTH - depth),
        }

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The peg and the middle of the named hole's rim, then that of each colour."""
        return landmarks(scene, (PEG, BLOCKS[0]), [], by_kind(self._colours, list(COLOURS)))

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        colours = list(COLOURS)
        renamed, (_, named) = rename(landmarks, rng)
        return [self.say(rng, goal=colours[i]) for i in named], renamed

    def expert_action(self, scene: Scene) -> np.ndarray:
        return self.expert.action(scene)

    def _depth(self, scene: Scene) -> float:
        """How far the tip is below the rim of the named hole, in metres; 0 above it and beside it."""
        x, y, z = self.blocks[0].inside(scene, tip(scene))
        between = max(abs(x), abs(y)) < self.parameters.clearance / 2 + PLAY
        return max(0.0, -float(z)) if between else 0.0

    def _places(self, count: int, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Places of blocks (count, 2), none of them under the gripper, where a peg that is let go would fall in."""
        parameters = self.parameters
        for _ in range(1000):
            places = scatter(rng, count, parameters.area_low, parameters.area_high, parameters.spacing)
            if np.linalg.norm(places - start, axis=1).min() > BESIDE:
                return places
        rule = f"every block must begin more than {BESIDE} m from the fingertips, sideways"
        area = f"the area from {parameters.area_low} to {parameters.area_high}"
        raise UserError(f"{rule}, which {area} does not allow; enlarge it")

    def _into_the_fingers(self, scene: Scene, rng: np.random.Generator) -> None:
        noise = self.parameters.grip_noise
        off = np.array([rng.uniform(-noise, noise), 0, rng.uniform(-noise, noise) - GRIP])
        scene.forward()
        scene.place_object(PEG, scene.fingertips() + off, 0.0)
        scene.grip()
