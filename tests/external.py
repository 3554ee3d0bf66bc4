"""A small Gymnasium environment on MuJoCo, as another package might make it."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from mrvlm_sim.sim.card import ExternalCard

XML = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 0 2"/>
    <camera name="top" pos="0 -0.3 1.5" xyaxes="1 0 0 0 1 0.2"/>
    <camera name="below" pos="0 0 -1.5" xyaxes="1 0 0 0 -1 0"/>
    <geom type="box" size="0.1 0.05 0.02" pos="-0.3 0.2 0" rgba="1 0 0 1" contype="0" conaffinity="0"/>
    <site name="goal" size="0.05" rgba="0 1 0 1"/>
    <body name="ball">
      <joint name="x" type="slide" axis="1 0 0" damping="5"/>
      <joint name="y" type="slide" axis="0 1 0" damping="5"/>
      <geom type="sphere" size="0.04" mass="1" rgba="0 0 1 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x"/><motor joint="y"/></actuator>
</mujoco>
"""
REACHED = 0.05  # metres


class FollowEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Roll a ball to a goal by forces from 0 to 2, of which 1 is none. Observation: ball (2,), goal (2,)."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = spaces.Box(0.0, 2.0, (2,), np.float32)

    def __init__(self, start_at_goal: bool = False) -> None:
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data = mujoco.MjData(self.model)
        self.start_at_goal = start_at_goal

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        goal = self.np_random.uniform(0.2, 0.4, 2)
        self.model.site("goal").pos[:2] = goal
        if self.start_at_goal:
            self.data.qpos[:] = goal
        mujoco.mj_forward(self.model, self.data)
        return self._look(), {"is_success": self._solved()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.last_action = action
        self.data.ctrl[:] = 10 * (action - 1)
        mujoco.mj_step(self.model, self.data, 5)
        return self._look(), 0.0, False, False, {"is_success": self._solved()}

    def _look(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.model.site("goal").pos[:2]])

    def _solved(self) -> bool:
        return bool(np.linalg.norm(self.data.qpos - self.model.site("goal").pos[:2]) < REACHED)


class FollowExpert:
    """Pushes straight to the goal."""

    def get_action(self, observation: np.ndarray) -> np.ndarray:
        return 1 + np.clip(4 * (observation[2:] - observation[:2]), -1, 1)


def register_follow() -> None:
    if "Follow-v0" not in gymnasium.registry:
        gymnasium.register("Follow-v0", entry_point=FollowEnv)


def follow_card() -> ExternalCard:
    return ExternalCard(
        gymnasium_id="Follow-v0", package="gymnasium", install="gymnasium", summary="Follow the ball.",
        instruction="follow the ball", max_steps=60, hold_steps=2, success_key="is_success",
        expert="external:FollowExpert", cameras={"scene": "top", "under": "below"}, proprio={"state": [0, 1]},
    )  # fmt: skip
