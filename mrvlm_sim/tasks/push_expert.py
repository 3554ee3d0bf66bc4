"""The scripted expert of pushing: behind the object as seen from the goal, down, and slowly along the line.

It keeps no memory: every action follows from the present state alone, so that it can correct any situation.
"""

from collections.abc import Sequence

import numpy as np

from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks.expert import CLOSE, towards

BEHIND = 0.055  # metres from the object's centre to where the fingers go down
PUSH_HEIGHT, TRAVEL_HEIGHT = 0.014, 0.09  # of the fingertips above the table, metres
STEP = 0.012  # metres per control step that a push advances
ON_LINE, OFF_LINE = 0.008, 0.018  # metres beside the line at which a push may begin, and must end
ROOM = 0.037  # metres from the centre of another object at which the fingers can come down beside it
DETOURS = np.radians([0, 25, -25, 50, -50, 75, -75])  # other ways to push while the straight one is obstructed


class PushExpert:
    """Pushes the free body `thing` to within `near` metres of the fixed body `target`, around the bodies `others`."""

    def __init__(self, thing: str, target: str, others: Sequence[str], near: float) -> None:
        self.thing, self.target, self.others, self.near = thing, target, others, near

    def action(self, scene: Scene) -> np.ndarray:
        """float32 (5,) in [-1, 1]."""
        here, thing = scene.fingertips(), scene.position(self.thing)
        to_goal = (scene.position(self.target) - thing)[:2]
        distance = float(np.linalg.norm(to_goal))
        if distance < self.near:
            return towards(scene, np.zeros(3), 0.0, CLOSE)
        ahead = self._way(scene, thing[:2], to_goal / distance)
        left = np.array([-ahead[1], ahead[0]])
        away = (here - thing)[:2]
        low = here[2] < PUSH_HEIGHT + 0.01
        if low and away @ ahead < 0 and abs(away @ left) < OFF_LINE:
            push = min(STEP, distance) * ahead - (away @ left) * left
            return towards(scene, np.array([*push, PUSH_HEIGHT - here[2]]), 0.0, CLOSE)
        return self._go_behind(scene, here, thing[:2] - BEHIND * ahead)

    def _go_behind(self, scene: Scene, here: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Up, across and down."""
        across = place - here[:2]
        aside = float(np.linalg.norm(across))
        height = PUSH_HEIGHT if aside < ON_LINE else TRAVEL_HEIGHT
        if aside > ON_LINE and here[2] < TRAVEL_HEIGHT - 0.02:
            across = np.zeros(2)
        return towards(scene, np.array([*across, height - here[2]]), 0.0, CLOSE)

    def _way(self, scene: Scene, thing: np.ndarray, straight: np.ndarray) -> np.ndarray:
        """The unit vector nearest to `straight` along which a push can begin."""
        others = np.array([scene.position(name)[:2] for name in self.others])
        for angle in DETOURS:
            cos, sin = np.cos(angle), np.sin(angle)
            way = np.array([[cos, -sin], [sin, cos]]) @ straight
            place = thing - BEHIND * way
            inside = (place > scene.arm.low[:2]).all() and (place < scene.arm.high[:2]).all()
            if inside and (np.linalg.norm(place - others, axis=1) > ROOM).all():
                return way
        return straight
