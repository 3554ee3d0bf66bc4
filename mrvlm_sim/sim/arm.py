"""The arm: end-effector deltas to joint targets through damped-least-squares differential inverse kinematics.

Source of the update: Buss, "Introduction to inverse kinematics with Jacobian transpose, pseudoinverse and damped
least squares methods" (2004), eq. 11, with a null-space pull towards the ready posture.
"""

from pathlib import Path

import mujoco
import numpy as np

from mrvlm_sim.sim.card import ActionScale, Workspace

PANDA_XML = Path(__file__).with_name("panda.xml")
JOINTS = tuple(f"joint{i}" for i in range(1, 8))
READY = np.array([0.0, -np.pi / 4, 0.0, -3 * np.pi / 4, 0.0, np.pi / 2, np.pi / 4])
FINGERS_DOWN = np.diag([1.0, -1.0, -1.0])  # hand frame in world axes at yaw 0
MAX_OPENING = 0.08  # metres between the fingertips
DAMPING = 0.02
POSTURE_GAIN = 0.02
LEASH = 0.08  # metres that the target may lead the fingertips, so that it cannot wind up against an obstacle
YAW_LIMIT = 1.2  # radians either side of the ready posture


class Arm:
    """A Panda with parallel gripper; the fingers always point down, so its pose is (x, y, z, yaw)."""

    def __init__(self, model: mujoco.MjModel, scale: ActionScale, workspace: Workspace) -> None:
        self.model, self.scale = model, scale
        self.low, self.high = np.array(workspace.low), np.array(workspace.high)
        joints = [model.joint(name) for name in JOINTS]
        self.qpos_index = np.array([joint.qposadr[0] for joint in joints])
        self.dof_index = np.array([joint.dofadr[0] for joint in joints])
        self.joint_low, self.joint_high = np.array([joint.range for joint in joints]).T
        self.finger_index = np.array([model.joint(f"finger_joint{i}").qposadr[0] for i in (1, 2)])
        self.actuator_index = np.array([model.actuator(name).id for name in JOINTS])
        self.gripper_actuator = model.actuator("gripper").id
        self.tcp = model.site("tcp").id
        self._kinematics = mujoco.MjData(model)
        self._jacobian = np.zeros((6, model.nv))

    def reset(self, data: mujoco.MjData, position: np.ndarray, opening: float = MAX_OPENING) -> None:
        """Put the arm at rest with its fingertips at `position` (3,) and `opening` apart, in metres."""
        self.target, self.yaw, self.opening = position.copy(), 0.0, opening
        self.joint_target = self._solve(READY, iterations=200)
        data.qpos[self.qpos_index] = self.joint_target
        data.qpos[self.finger_index] = opening / 2
        data.ctrl[self.actuator_index] = self.joint_target
        data.ctrl[self.gripper_actuator] = opening / 2

    def close(self, data: mujoco.MjData) -> None:
        """Tell the gripper to close, as an action would."""
        self.opening = 0.0
        data.ctrl[self.gripper_actuator] = 0.0

    def restore(self, data: mujoco.MjData) -> None:
        """Take up the state that `data` was put into: targets are where the arm is and was told to go."""
        self.joint_target = data.ctrl[self.actuator_index].copy()
        self.opening = 2 * float(data.ctrl[self.gripper_actuator])
        self.target, self.yaw = self.position(data), self.heading(data)

    def command(self, data: mujoco.MjData, action: np.ndarray) -> np.ndarray:
        """Joint targets (7,) for one action (5,) in [-1, 1]; sets the gripper: > 0 opens, < 0 closes, 0 holds."""
        fingertips = self.position(data)
        moved = self.target + self.scale.translation * action[:3]
        moved = np.clip(moved, fingertips - LEASH, fingertips + LEASH)
        self.target = np.clip(moved, self.low, self.high)
        self.yaw = float(np.clip(self.yaw + self.scale.yaw * action[3], -YAW_LIMIT, YAW_LIMIT))
        if action[4] != 0:
            self.opening = MAX_OPENING if action[4] > 0 else 0.0
        data.ctrl[self.gripper_actuator] = self.opening / 2
        self.joint_target = self._solve(self.joint_target, iterations=10)
        return self.joint_target

    def position(self, data: mujoco.MjData) -> np.ndarray:
        """World position of the point between the fingertips (3,), in metres."""
        return data.site_xpos[self.tcp].copy()

    def heading(self, data: mujoco.MjData) -> float:
        """Yaw of the hand in radians, 0 in the ready posture."""
        rotation = data.site_xmat[self.tcp].reshape(3, 3)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def finger_opening(self, data: mujoco.MjData) -> float:
        """Distance between the fingertips in metres."""
        return float(data.qpos[self.finger_index].sum())

    def _solve(self, joints: np.ndarray, iterations: int) -> np.ndarray:
        joints = joints.copy()
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        orientation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ FINGERS_DOWN
        for _ in range(iterations):
            error, jacobian = self._error(joints, orientation)
            if np.abs(error).max() < 1e-4:
                break
            gain = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING**2 * np.eye(6))
            posture = (np.eye(7) - gain @ jacobian) @ (POSTURE_GAIN * (READY - joints))
            joints = np.clip(joints + gain @ error + posture, self.joint_low, self.joint_high)
        return joints

    def _error(self, joints: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pose error (6,) of the fingertips at `joints` and the Jacobian (6, 7) there."""
        data = self._kinematics
        data.qpos[self.qpos_index] = joints
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_comPos(self.model, data)
        mujoco.mj_jacSite(self.model, data, self._jacobian[:3], self._jacobian[3:], self.tcp)
        rotation = data.site_xmat[self.tcp].reshape(3, 3)
        turn = 0.5 * np.cross(rotation.T, orientation.T).sum(axis=0)
        error = np.concatenate([self.target - data.site_xpos[self.tcp], turn])
        return error, self._jacobian[:, self.dof_index]
