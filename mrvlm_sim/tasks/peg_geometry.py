"""The peg, and the blocks with a hole that it goes into; lengths in metres."""

from dataclasses import dataclass

import numpy as np

from mrvlm_sim.sim.scene import Scene

PEG = "peg"
PEG_HALF = 0.02  # from the peg's centre to its faces
GRIP = 0.012  # above the peg's centre, where the fingertips hold it
RIM = 0.025  # height of a block and depth of its hole
WALL_HALF = 0.011  # of a wall's thickness
WALLS = 4


@dataclass(frozen=True)
class Block:
    """Four walls around a square hole; the origin is the middle of the hole's rim."""

    name: str
    clearance: float  # metres by which the hole is wider than the peg

    def place(self, scene: Scene, rim: np.ndarray, yaw: float) -> None:
        """Put the middle of the rim at `rim` (3,) and the walls around it, the block turned by `yaw` radians."""
        scene.place_fixture(self.name, rim, yaw)
        away = PEG_HALF + self.clearance / 2 + WALL_HALF
        for wall, name in enumerate(self.walls):
            angle = wall * np.pi / 2
            scene.place_fixture(name, np.array([away * np.cos(angle), away * np.sin(angle), -RIM / 2]))

    def paint(self, scene: Scene, rgb: tuple[float, float, float]) -> None:
        for name in self.walls:
            scene.paint(name, rgb)

    @property
    def walls(self) -> list[str]:
        return [f"{self.name}/wall{wall}" for wall in range(WALLS)]

    def inside(self, scene: Scene, point: np.ndarray) -> np.ndarray:
        """`point` (3,) in the block's own axes, from the middle of the rim."""
        return scene.data.body(self.name).xmat.reshape(3, 3).T @ (point - scene.position(self.name))


def upright(scene: Scene) -> np.ndarray:
    """The peg's axis (3,) that is nearest to vertical, pointing up."""
    axes = scene.data.body(PEG).xmat.reshape(3, 3)
    axis = axes[:, np.argmax(np.abs(axes[2]))]
    return axis * np.sign(axis[2])


def tip(scene: Scene) -> np.ndarray:
    """The middle of the peg's lower face (3,)."""
    return scene.position(PEG) - PEG_HALF * upright(scene)
