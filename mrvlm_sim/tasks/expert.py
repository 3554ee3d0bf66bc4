"""The scripted expert for tasks of grasping and placing.

It keeps no memory: every action follows from the present state alone, so that it can correct any situation.
"""

import numpy as np

from mrvlm_sim.sim.scene import Scene

ALIGNED = 0.012  # metres off the object at which the fingers may go down
OPEN, CLOSE = 1.0, -1.0


class GripperExpert:
    """Brings the free body `thing` onto the fixed body `target`."""

    def __init__(self, thing: str, target: str, half_size: float, carry_height: float = 0.20) -> None:
        self.thing, self.target = thing, target
        self.half_size, self.carry_height = half_size, carry_height

    def action(self, scene: Scene) -> np.ndarray:
        """float32 (5,) in [-1, 1]."""
        here = scene.fingertips()
        thing, target = scene.position(self.thing), scene.position(self.target)
        holds = scene.fingers_touching(self.thing) == 2
        # Lying on the table inside the target, held or not: let go and rise.
        delivered = np.abs(thing[:2] - target[:2]).max() < 0.03 and thing[2] < self.half_size + 0.006
        if delivered:
            rise = 0.0 if holds or scene.arm.finger_opening(scene.data) < 0.06 else 0.25 - here[2]
            return self._towards(scene, np.array([0, 0, rise]), 0.0, OPEN)
        if holds:
            return self._carry(scene, here, thing, target)
        return self._fetch(scene, here, thing)

    def _fetch(self, scene: Scene, here: np.ndarray, thing: np.ndarray) -> np.ndarray:
        offset = thing - here
        turn = self._nearest_turn(scene.yaw(self.thing) - scene.arm.heading(scene.data))
        sideways = float(np.linalg.norm(offset[:2]))
        if sideways < ALIGNED and abs(offset[2]) < 0.012:
            return self._towards(scene, offset, turn, CLOSE)
        # A funnel: the further off to the side, the higher; straight above, down to the object.
        height = thing[2] + (0.0 if sideways < ALIGNED else min(0.08, 0.04 + sideways))
        if here[2] < thing[2] + 0.03 and sideways > ALIGNED:
            offset[:2] = 0  # first up, so as not to push the object away
        return self._towards(scene, np.array([offset[0], offset[1], height - here[2]]), turn, OPEN)

    def _carry(self, scene: Scene, here: np.ndarray, thing: np.ndarray, target: np.ndarray) -> np.ndarray:
        offset = target - thing
        sideways = float(np.linalg.norm(offset[:2]))
        if sideways < 0.015:
            down = self.half_size - thing[2]
            return self._towards(scene, np.array([offset[0], offset[1], down]), 0.0, CLOSE)
        up = self.carry_height - here[2]
        if up > 0.08:
            offset[:2] *= 0.0
        return self._towards(scene, np.array([offset[0], offset[1], up]), 0.0, CLOSE)

    @staticmethod
    def _nearest_turn(angle: float) -> float:
        """The smallest turn that is the same for a square: in [-pi/4, pi/4]."""
        return (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4

    @staticmethod
    def _towards(scene: Scene, move: np.ndarray, turn: float, gripper: float) -> np.ndarray:
        """The action that goes as far towards `move` (metres) and `turn` (radians) as one step allows."""
        scale = scene.arm.scale
        step = np.clip(move / scale.translation, -1, 1)
        return np.array([*step, np.clip(turn / scale.yaw, -1, 1), gripper], dtype=np.float32)
