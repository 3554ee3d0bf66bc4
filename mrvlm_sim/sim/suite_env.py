"""What evaluation asks of an environment, whether it is this suite's own or another's."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.camera import Renderer

INSTRUCTION_BYTES = 256
Observation = dict[str, np.ndarray]


class SuiteEnv(gymnasium.Env[Observation, np.ndarray]):
    """A MuJoCo environment with cameras, an instruction, and a goal that is reached or not.

    Observations are a Dict with at least `proprio` float32 (P,) and `instruction` uint8 (256,): UTF-8 bytes,
    zero-padded (`decode_instruction`). Actions are float32 in [-1, 1]. `info` holds `is_success` (bool), `held_steps`
    (for how many control steps the goal has held) and `instruction`. One of the cameras is called `scene`.
    """

    card: Any
    renderer: Renderer
    instruction: str
    observation_space: spaces.Dict  # type: ignore[assignment]
    action_space: spaces.Box

    @property
    def model(self) -> mujoco.MjModel:
        """What is simulated."""
        raise NotImplementedError

    @property
    def data(self) -> mujoco.MjData:
        """Its state."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """How the environment is called in messages."""
        return self.card.id

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, as a policy may ask for them."""
        return tuple(self.renderer.cameras)

    @property
    def action_size(self) -> int:
        """How many numbers an action has."""
        return self.action_space.shape[0]

    @property
    def has_expert(self) -> bool:
        """Whether there is a scripted expert."""
        return True

    def solved(self) -> bool:
        """Whether the goal holds right now, however briefly."""
        raise NotImplementedError

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action, from the true state."""
        raise NotImplementedError

    def check(self) -> None:
        """Whether the environment keeps what evaluation relies on.

        Raises:
            UserError: it does not.
        """

    def render(self) -> np.ndarray:
        """The scene camera's picture, uint8 (360, 480, 3)."""
        return self.renderer.picture("scene", width=480, height=360)

    def close(self) -> None:
        self.renderer.close()


def check_render_mode(render_mode: str | None) -> None:
    """
    Raises:
        UserError: it is neither 'rgb_array' nor None.
    """
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"render_mode must be 'rgb_array' or None, not {render_mode!r}")


def instruction_space() -> spaces.Box:
    """Where encoded instructions lie."""
    return spaces.Box(0, 255, (INSTRUCTION_BYTES,), np.uint8)


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


def simulator_state(env: SuiteEnv) -> np.ndarray:
    """The full physics state, float64 (n,), as MuJoCo defines it."""
    return get_state(env.model, env.data)


def get_state(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Everything that the next step depends on, float64 (n,): MuJoCo's integration state."""
    spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(model, spec))
    mujoco.mj_getState(model, data, state, spec)
    return state


def set_state(model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
    """Put back what `get_state` gave; what is computed from it stays as it is until the next forward."""
    mujoco.mj_setState(model, data, state, int(mujoco.mjtState.mjSTATE_INTEGRATION))
