"""Scripted experts for Gymnasium-Robotics' Fetch tasks, which come without any.

They read the goal-conditioned observation and act as the environments do: dx, dy, dz in units of 5 cm, and a gripper
that opens above 0.
"""

from collections.abc import Mapping

import numpy as np

Observation = Mapping[str, np.ndarray]
GAIN = 12.0  # units of action per metre still to go
OPEN, CLOSE = 1.0, -1.0
BLOCK_HALF = 0.025  # metres from the block's centre to its sides
BEHIND = 0.07  # metres from the block's centre to where a push begins
NEAR_GOAL = 0.01  # metres at which a push ends
PUSH_GAIN = 6.0  # a slower push keeps the block on its way
ABOVE = np.array([0.0, 0.0, 0.05])  # metres over the block, from where the gripper goes straight down


def move(offset: np.ndarray, gripper: float, gain: float = GAIN) -> np.ndarray:
    """An action (4,) towards `offset` (3,), in metres from the gripper."""
    return np.append(np.clip(gain * offset, -1, 1), gripper)


class ReachExpert:
    """Straight to the goal."""

    def get_action(self, observation: Observation) -> np.ndarray:
        return move(observation["desired_goal"] - observation["achieved_goal"], CLOSE)


class PickAndPlaceExpert:
    """Over the block, down, close, and with it to the goal."""

    def get_action(self, observation: Observation) -> np.ndarray:
        gripper, block = observation["observation"][:3], observation["observation"][3:6]
        away = block - gripper
        opening = observation["observation"][9:11].sum()
        grasped = np.linalg.norm(away) < 0.02 and opening < 0.06
        if grasped:
            return move(observation["desired_goal"] - block, CLOSE)
        if np.linalg.norm(away[:2]) > 0.008 and away[2] < 0.03:
            return move(away + ABOVE, OPEN)
        return move(away, CLOSE if np.linalg.norm(away) < 0.01 else OPEN)


class PushExpert:
    """Behind the block as seen from the goal, fingers closed, and then slowly through it."""

    def get_action(self, observation: Observation) -> np.ndarray:
        gripper, block, goal = (
            observation["observation"][:3],
            observation["observation"][3:6],
            observation["desired_goal"],
        )
        to_goal = (goal - block)[:2]
        distance = np.linalg.norm(to_goal)
        if distance < NEAR_GOAL:
            return move(np.zeros(3), CLOSE)
        ahead = np.append(to_goal / distance, 0.0)
        start = block - BEHIND * ahead
        offset = start - gripper
        beside = np.linalg.norm(np.cross(ahead, block - gripper))
        if beside < 0.015 and (block - gripper) @ ahead > 0 and abs(offset[2]) < 0.02:
            return move(goal - BLOCK_HALF * ahead - gripper, CLOSE, gain=PUSH_GAIN)
        if np.linalg.norm(offset[:2]) > 0.01:
            return move(offset + np.array([0, 0, 0.08]), CLOSE)
        return move(offset, CLOSE)
