"""What all shifts have in common."""

import mujoco
import numpy as np

from mrvlm_sim.sim.camera import Decor
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv
from mrvlm_sim.wrappers.tokens import Frames


class Shift:
    """Changes the world after every reset, actions before they are taken, or frames before they are cut."""

    of_frames = False  # whether `frames` does anything, so that sensor frames are needed
    own_only = False  # whether it takes an environment of this suite's own

    def __init__(self, severity: float, rng: np.random.Generator) -> None:
        self.severity, self.rng = severity, rng

    def model(self, model: mujoco.MjModel) -> None:
        """Change the model; it is put back afterwards."""

    def decor(self, env: SuiteEnv) -> list[Decor]:
        """What is drawn beside what is simulated."""
        return []

    def instruction(self, env: SuiteEnv) -> str:
        """The instruction that is given instead."""
        return env.instruction

    def action(self, action: np.ndarray) -> np.ndarray:
        """The action that is taken instead."""
        return action

    def frames(self, frames: Frames, observation: Observation) -> Frames:
        """The frames, uint8 (S, S, 3) by camera, that are cut instead."""
        return frames
