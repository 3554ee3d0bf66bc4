"""Push: shove the named cube into the named zone with closed fingers, among distractors.

The gripper is locked shut, as in Gymnasium-Robotics' FetchPush, so that nothing can be grasped.
"""

from itertools import product
from typing import Annotated

import numpy as np
from pydantic import Field

from mrvlm_sim.sim.card import EnvironmentCard, Workspace
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks.push_expert import PushExpert
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

BLOCKS = ("block0", "block1", "block2", "block3")
ZONES = ("zone0", "zone1")
HALF_SIZE = 0.025  # of a cube, metres
CORNERS = HALF_SIZE * np.array(list(product((-1, 1), repeat=3)))
ROOM_TO_PUSH = 0.09  # metres that the fingers may need behind a cube
OUTSIDE = 0.01  # metres from the edge of every zone to a cube's centre at the start, at least
LIFTED = 0.005  # metres above its height at rest at which a cube no longer lies on the table
RESTING_SPEED = 0.05  # metres per second
REWARD_SCALE = 0.1  # metres
PHRASES = Phrases(
    seen=(
        "push the {thing} cube into the {goal} zone",
        "push the {thing} cube onto the {goal} disc",
        "slide the {thing} cube into the {goal} zone",
        "with closed fingers, move the {thing} cube to the {goal} zone",
        "the {thing} cube belongs in the {goal} zone: push it there",
    ),
    unseen=(
        "shove the {thing} block until it lies on the {goal} circle",
        "into the {goal} zone with the {thing} cube, without lifting it",
        "nudge the cube that is {thing} over to the disc that is {goal}",
    ),
)


class Parameters(Area, Wording):
    """What `[parameters]` of a push `env.toml` may say; lengths in metres, angles in radians, friction without unit."""

    objects: Counts
    area_low: tuple[float, float]
    area_high: tuple[float, float]
    spacing: Annotated[float, Field(ge=0.08, le=0.12)]
    target_radius: Annotated[float, Field(ge=0.05, le=0.10)]
    friction: Annotated[float, Field(ge=0.2, le=0.9)]
    max_yaw: Annotated[float, Field(ge=0)]
    start_noise: Annotated[float, Field(ge=0, le=0.06)]


def build(card: EnvironmentCard, parameters: Parameters) -> "Push":
    return Push(parameters, card.workspace)


class Push(TableTask):
    """Body 0 of each kind is the named one; which colour that is, the instruction says."""

    phrases = PHRASES
    parameters: Parameters

    def __init__(self, parameters: Parameters, workspace: Workspace) -> None:
        require_area(workspace, ROOM_TO_PUSH, area=(parameters.area_low, parameters.area_high))
        self.parameters, self.start = parameters, np.array(workspace.start)
        play = parameters.target_radius - np.hypot(HALF_SIZE, HALF_SIZE)  # for the cube's centre, however it is turned
        self.expert = PushExpert(BLOCKS[0], ZONES[0], BLOCKS[1:], near=0.5 * play)

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        parameters = self.parameters
        scene.reset(self.start + rng.uniform(-parameters.start_noise, parameters.start_noise, 3))
        lock_gripper(scene)
        count = int(rng.integers(parameters.objects[0], parameters.objects[1] + 1))
        block_colours, zone_colours = (rng.permutation(list(COLOURS)).tolist() for _ in range(2))
        self._blocks = dict(zip(block_colours, BLOCKS[:count], strict=False))
        self._zones = dict(zip(zone_colours, ZONES, strict=False))
        self._place(scene, rng, count)
        for body, colour in zip(BLOCKS + ZONES, block_colours + zone_colours, strict=False):
            scene.paint(body, COLOURS[colour])
        self.words = {"thing": block_colours[0], "goal": zone_colours[0]}
        return self.say(rng, **self.words)

    def _place(self, scene: Scene, rng: np.random.Generator, count: int) -> None:
        parameters = self.parameters
        area, radius = (parameters.area_low, parameters.area_high), parameters.target_radius
        zones = scatter(rng, len(ZONES), *area, spacing=2 * radius)
        for name, place in zip(ZONES, zones, strict=True):
            scene.place_fixture(name, np.array([*place, 0.0005]))
            scene.model.geom(name).size[0] = radius
        blocks = scatter(rng, count, *area, parameters.spacing, taken=zones, clearance=radius + OUTSIDE)
        yaws = rng.uniform(-parameters.max_yaw, parameters.max_yaw, count)
        for name, place, yaw in zip(BLOCKS, blocks, yaws, strict=False):
            scene.place_object(name, np.array([*place, HALF_SIZE]), yaw)
        for slot, name in enumerate(BLOCKS[count:]):
            scene.store_object(name, slot)
        for name in BLOCKS:
            scene.model.geom(name).friction[0] = parameters.friction

    def advance(self, scene: Scene) -> None:
        """Nothing moves by itself."""

    def satisfied(self, scene: Scene) -> bool:
        """The named cube rests flat on the table with every corner within the named zone, touched or not."""
        on_table = abs(scene.position(BLOCKS[0])[2] - HALF_SIZE) < LIFTED
        at_rest = scene.speed(BLOCKS[0]) < RESTING_SPEED
        return bool(on_table and at_rest and self._reach(scene) < self.parameters.target_radius)

    @staticmethod
    def _reach(scene: Scene) -> float:
        """How far from the zone's centre the cube's farthest corner is, in metres along the table."""
        corners = CORNERS @ scene.data.body(BLOCKS[0]).xmat.reshape(3, 3).T + scene.position(BLOCKS[0])
        return float(np.linalg.norm((corners - scene.position(ZONES[0]))[:, :2], axis=1).max())

    def reward(self, scene: Scene) -> float:
        """A quarter for the fingertips' way to the cube, three quarters for the cube's way to the zone's centre.

        Each is 1 / (1 + (d / 10 cm)^2), d being the distance that is left.
        """
        near, there = self.distances(scene).values()
        return 0.25 * closeness(near, REWARD_SCALE) + 0.75 * closeness(there, REWARD_SCALE)

    def distances(self, scene: Scene) -> dict[str, float]:
        block, zone = scene.position(BLOCKS[0]), scene.position(ZONES[0])
        return {
            "fingertips_to_object": float(np.linalg.norm(block - scene.fingertips())),
            "object_to_target": float(np.linalg.norm((block - zone)[:2])),
        }

    def landmarks(self, scene: Scene) -> np.ndarray:
        """The named cube and zone, then the cube and the zone of each colour."""
        colours = list(COLOURS)
        return landmarks(scene, (BLOCKS[0], ZONES[0]), by_kind(self._blocks, colours), by_kind(self._zones, colours))

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        colours = list(COLOURS)
        renamed, named = rename(landmarks, rng)
        return [self.say(rng, thing=colours[i], goal=colours[j]) for i, j in zip(*named, strict=True)], renamed

    def expert_action(self, scene: Scene) -> np.ndarray:
        return self.expert.action(scene)


def lock_gripper(scene: Scene) -> None:
    """Shut the fingers for good: MuJoCo holds what the actuator is told to this range of no width."""
    scene.model.actuator("gripper").ctrlrange[:] = 0.0
    scene.data.qpos[scene.arm.finger_index] = 0.0
    scene.data.ctrl[scene.arm.gripper_actuator] = 0.0
    scene.arm.opening = 0.0
