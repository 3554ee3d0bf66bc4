"""The Gymnasium environment that every task shares; a task says what is on the table and what counts as success."""

from pathlib import Path
from typing import Any, Protocol

import mujoco
import numpy as np
from gymnasium import spaces

from mrvlm_sim.sim.camera import Renderer
from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv, check_render_mode, encode_instruction, instruction_space

PROPRIO_SIZE = 7
ACTION_SIZE = 5


class Task(Protocol):
    """What distinguishes one task from another."""

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        """Arrange the scene and return the instruction."""

    def rephrase(self, rng: np.random.Generator) -> str:
        """The present instruction in other words, that demonstrations never use."""

    def paths(self) -> np.ndarray:
        """Circles (n, 3) on the table, x, y and radius in metres, over which things will move by themselves."""

    def advance(self, scene: Scene) -> None:
        """Move what moves by itself, before each step; it may depend on the scene's state and time alone."""

    def satisfied(self, scene: Scene) -> bool:
        """Whether the goal holds right now; held for `hold_steps`, it is success."""

    def reward(self, scene: Scene) -> float:
        """How near the goal is, from 0 to 1; the dense reward of a step is that less 1."""

    def distances(self, scene: Scene) -> dict[str, float]:
        """Distances in metres, for `info`."""

    def landmarks(self, scene: Scene) -> np.ndarray:
        """Where things are, seen from the fingertips, float32 (K, 3) in metres, NaN where there is none.

        For the auxiliary loss of training only; a task gives the same K landmarks in every episode.
        """

    def relabel(self, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """Random other instructions for B scenes with landmarks (B, K, 3), and the landmarks under them."""

    def expert_action(self, scene: Scene) -> np.ndarray:
        """The scripted expert's action (5,) from the true state."""


class ManipulationEnv(SuiteEnv):
    """A Panda at a table, driven by end-effector deltas.

    Observations are proprioception and the instruction (UTF-8 bytes, zero-padded: `decode_instruction`);
    pictures are added by `mrvlm_sim.wrappers.MultiResolutionTokens`. The reward of a step is 1 on success, else 0;
    or, with `reward = "dense"` on the card, 0 on success, else what is missing, from -1 to 0, as the task says.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, card: EnvironmentCard, folder: Path, task: Task, render_mode: str | None = "rgb_array") -> None:
        check_render_mode(render_mode)
        self.card, self.task, self.render_mode = card, task, render_mode
        self.scene = Scene(folder, card)
        self.renderer = Renderer(self.scene.model, lambda: self.scene.data)
        self.observation_space = spaces.Dict(
            {
                "proprio": spaces.Box(-np.inf, np.inf, (PROPRIO_SIZE,), np.float32),
                "instruction": instruction_space(),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
        self.instruction = ""
        self._held = self._steps = 0

    @property
    def model(self) -> mujoco.MjModel:
        return self.scene.model

    @property
    def data(self) -> mujoco.MjData:
        return self.scene.data

    def solved(self) -> bool:
        return self.task.satisfied(self.scene)

    def expert_action(self) -> np.ndarray:
        return self.task.expert_action(self.scene)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        super().reset(seed=seed)
        self.instruction = self.task.reset(self.scene, self.np_random)
        self.scene.forward()
        self._held = self._steps = 0
        return self._observation(), self._info(success=False)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Apply one action (5,): dx, dy, dz, dyaw, gripper; values beyond [-1, 1] are clipped.

        Raises:
            ValueError: the action has another shape or is not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (ACTION_SIZE,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_SIZE} finite numbers in [-1, 1], not {action!r}")
        self.task.advance(self.scene)
        self.scene.step(np.clip(action, -1.0, 1.0))
        if not self.scene.state_is_finite():
            raise FloatingPointError("the simulation diverged: positions or velocities are not finite")
        self._steps += 1
        self._held = self._held + 1 if self.solved() else 0
        success = self._held >= self.card.hold_steps
        truncated = not success and self._steps >= self.card.max_steps
        # Dense: what is missing, so that to end the episode by success is worth more than to hover near it.
        missing = 0.0 if success else self.task.reward(self.scene) - 1
        reward = float(success) if self.card.reward == "sparse" else missing
        return self._observation(), reward, success, truncated, self._info(success)

    def _observation(self) -> Observation:
        return {"proprio": self.scene.proprioception(), "instruction": encode_instruction(self.instruction)}

    def _info(self, success: bool) -> dict[str, Any]:
        distances = self.task.distances(self.scene)
        return {"is_success": success, "held_steps": self._held, "instruction": self.instruction, **distances}
