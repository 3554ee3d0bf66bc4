"""The Gymnasium environment that every task shares; a task says what is on the table and what counts as success."""

from pathlib import Path
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.camera import Renderer
from mrvlm_sim.sim.card import EnvironmentCard
from mrvlm_sim.sim.scene import Scene

INSTRUCTION_BYTES = 256
PROPRIO_SIZE = 7
ACTION_SIZE = 5
Observation = dict[str, np.ndarray]


class Task(Protocol):
    """What distinguishes one task from another."""

    def reset(self, scene: Scene, rng: np.random.Generator) -> str:
        """Arrange the scene and return the instruction."""

    def satisfied(self, scene: Scene) -> bool:
        """Whether the goal holds right now; held for `hold_steps`, it is success."""

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


class ManipulationEnv(gymnasium.Env[Observation, np.ndarray]):
    """A Panda at a table, driven by end-effector deltas.

    Observations are proprioception and the instruction (UTF-8 bytes, zero-padded: `decode_instruction`);
    pictures are added by `mrvlm_sim.wrappers.MultiResolutionTokens`. The reward is 1 on success, else 0.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, card: EnvironmentCard, folder: Path, task: Task, render_mode: str | None = "rgb_array") -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode must be 'rgb_array' or None, not {render_mode!r}")
        self.card, self.task, self.render_mode = card, task, render_mode
        self.scene = Scene(folder, card)
        self.renderer = Renderer(self.scene.model)
        self.observation_space: spaces.Dict = spaces.Dict(  # type: ignore[assignment]
            {
                "proprio": spaces.Box(-np.inf, np.inf, (PROPRIO_SIZE,), np.float32),
                "instruction": spaces.Box(0, 255, (INSTRUCTION_BYTES,), np.uint8),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
        self.instruction = ""
        self._held = self._steps = 0

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, as a policy may ask for them."""
        model = self.scene.model
        return tuple(model.camera(i).name for i in range(model.ncam))

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
        self.scene.step(np.clip(action, -1.0, 1.0))
        if not self.scene.state_is_finite():
            raise FloatingPointError("the simulation diverged: positions or velocities are not finite")
        self._steps += 1
        self._held = self._held + 1 if self.task.satisfied(self.scene) else 0
        success = self._held >= self.card.hold_steps
        truncated = not success and self._steps >= self.card.max_steps
        return self._observation(), float(success), success, truncated, self._info(success)

    def render(self) -> np.ndarray:
        """The scene camera's picture, uint8 (360, 480, 3)."""
        return self.renderer.picture(self.scene.data, "scene", width=480, height=360)

    def close(self) -> None:
        self.renderer.close()

    def _observation(self) -> Observation:
        return {"proprio": self.scene.proprioception(), "instruction": encode_instruction(self.instruction)}

    def _info(self, success: bool) -> dict[str, Any]:
        distances = self.task.distances(self.scene)
        return {"is_success": success, "held_steps": self._held, "instruction": self.instruction, **distances}


def encode_instruction(text: str) -> np.ndarray:
    """UTF-8 bytes of an instruction, zero-padded, uint8 (256,).

    Raises:
        UserError: the instruction is longer than 256 bytes.
    """
    encoded = text.encode("utf-8")
    if len(encoded) > INSTRUCTION_BYTES:
        raise UserError(f"an instruction has at most {INSTRUCTION_BYTES} bytes of UTF-8, not {len(encoded)}: {text!r}")
    return np.frombuffer(encoded.ljust(INSTRUCTION_BYTES, b"\0"), dtype=np.uint8).copy()


def decode_instruction(encoded: np.ndarray) -> str:
    """The inverse of `encode_instruction`."""
    return bytes(encoded).rstrip(b"\0").decode("utf-8")


def simulator_state(env: ManipulationEnv) -> np.ndarray:
    """The full physics state, float64 (n,), as MuJoCo defines it."""
    spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(env.scene.model, spec))
    mujoco.mj_getState(env.scene.model, env.scene.data, state, spec)
    return state
