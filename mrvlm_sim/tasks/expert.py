"""The scripted expert for tasks of grasping and placing.

It keeps no memory: every action follows from the present state alone, so that it can correct any situation.
"""

import numpy as np

from mrvlm_sim.sim.scene import Scene

ALIGNED = 0.012  # metres off the object at which the fingers may go down
HOVER = 0.02  # metres over its place at which a thing is centred before it is let down
OPEN, CLOSE = 1.0, -1.0


def towards(scene: Scene, move: np.ndarray, turn: float, gripper: float) -> np.ndarray:
    """The action that goes as far towards `move` (metres) and `turn` (radians) as one step allows."""
    scale = scene.arm.scale
    step = np.clip(move / scale.translation, -1, 1)
    return np.array([*step, np.clip(turn / scale.yaw, -1, 1), gripper], dtype=np.float32)


class GripperExpert:
    """Brings the free body `thing` onto the body `target`.

    Lengths in metres: `half_size` is that of the thing, `precision` how far off the target's centre it may be let go,
    along x or y, and `above` how far its centre then lies over the target's; without, it lies on the table.
    """

    def __init__(
        self, thing: str, target: str, half_size: float,
        carry_height: float = 0.20, precision: float = 0.03, above: float | None = None,
    ) -> None:  # fmt: skip
        self.thing, self.target = thing, target
        self.half_size, self.carry_height = half_size, carry_height
        self.precision, self.above = precision, above

    def action(self, scene: Scene) -> np.ndarray:
        """float32 (5,) in [-1, 1]."""
        here = scene.fingertips()
        thing, target = scene.position(self.thing), scene.position(self.target)
        holds = scene.fingers_touching(self.thing) == 2
        if self._delivered(thing, target):  # held or not: let go and rise
            rise = 0.0 if holds or scene.arm.finger_opening(scene.data) < 0.06 else 0.25 - here[2]
            return self._towards(scene, np.array([0, 0, rise]), 0.0, OPEN)
        if holds:
            return self._carry(scene, here, thing, target)
        return self._fetch(scene, here, thing)

    def _resting_height(self, target: np.ndarray) -> float:
        return self.half_size if self.above is None else float(target[2]) + self.above

    def _delivered(self, thing: np.ndarray, target: np.ndarray) -> bool:
        height = self._resting_height(target)
        centred = np.abs(thing[:2] - target[:2]).max() < self.precision
        return bool(centred and height - 0.012 < thing[2] < height + 0.006)

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
            over = HOVER if sideways > self.precision else 0.0
            down = self._resting_height(target) + over - thing[2]
            return self._towards(scene, np.array([offset[0], offset[1], down]), 0.0, CLOSE)
        up = self.carry_height - here[2]
        if up > 0.08:
            offset[:2] *= 0.0
        return self._towards(scene, np.array([offset[0], offset[1], up]), 0.0, CLOSE)

    @staticmethod
    def _nearest_turn(angle: float) -> float:
        """The smallest turn that is the same for a square: in [-pi/4, pi/4]."""
        return (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4

    _towards = staticmethod(towards)
