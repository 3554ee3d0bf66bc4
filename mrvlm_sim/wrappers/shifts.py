"""Shifts: what a policy was not trained under, on the same initial states, from severity 0 (nothing) to 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import mujoco
import numpy as np
from scipy.ndimage import gaussian_filter

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv
from mrvlm_sim.wrappers.tokens import Frames


class Shift:
    """Changes the model after every reset, actions before they are taken, or frames before they are cut."""

    of_frames = False  # whether `frames` does anything, so that sensor frames are needed

    def __init__(self, severity: float, rng: np.random.Generator) -> None:
        self.severity, self.rng = severity, rng

    def model(self, model: mujoco.MjModel) -> None:
        """Change the model; it is put back afterwards."""

    def action(self, action: np.ndarray) -> np.ndarray:
        """The action that is taken instead."""
        return action

    def frames(self, frames: Frames, observation: Observation) -> Frames:
        """The frames, uint8 (S, S, 3) by camera, that are cut instead."""
        return frames


class Lighting(Shift):
    """All lights up or down by up to 60 %, and their directions turned by up to 45 degrees."""

    def model(self, model: mujoco.MjModel) -> None:
        factor = 1 + 0.6 * self.severity * self.rng.choice([-1, 1])
        headlight = model.vis.headlight
        for colours in (model.light_diffuse, model.light_ambient, headlight.diffuse, headlight.ambient):
            colours[:] = np.clip(colours * factor, 0, 1)
        turn = self.rng.normal(size=model.light_dir.shape)
        model.light_dir[:] += self.severity * turn / np.linalg.norm(turn, axis=-1, keepdims=True)
        model.light_dir[:] /= np.linalg.norm(model.light_dir, axis=-1, keepdims=True)


class Colours(Shift):
    """Table, floor and sky towards random colours by up to 80 %; everything else tinted by up to 15 % of the range."""

    def model(self, model: mujoco.MjModel) -> None:
        background = (model.geom_bodyid == 0)[:, None]
        mixed = model.geom_rgba[:, :3] + 0.8 * self.severity * (
            self.rng.random((model.ngeom, 3)) - model.geom_rgba[:, :3]
        )
        tinted = model.geom_rgba[:, :3] + 0.15 * self.severity * self.rng.uniform(-1, 1, (model.ngeom, 3))
        model.geom_rgba[:, :3] = np.clip(np.where(background, mixed, tinted), 0, 1)


class Camera(Shift):
    """Every camera moved by up to 3 cm and turned by up to 8 degrees."""

    def model(self, model: mujoco.MjModel) -> None:
        for camera in range(model.ncam):
            model.cam_pos[camera] += 0.03 * self.severity * _direction(self.rng)
            turn, result = np.zeros(4), np.zeros(4)
            mujoco.mju_axisAngle2Quat(turn, _direction(self.rng), np.deg2rad(8) * self.severity)
            mujoco.mju_mulQuat(result, model.cam_quat[camera], turn)
            model.cam_quat[camera] = result


class Noise(Shift):
    """Gaussian noise of the sensor, with a standard deviation of up to 20 % of the pixel range."""

    of_frames = True

    def frames(self, frames: Frames, observation: Observation) -> Frames:
        return {name: self._noisy(frame) for name, frame in frames.items()}

    def _noisy(self, frame: np.ndarray) -> np.ndarray:
        noise = self.rng.normal(0, 51 * self.severity, frame.shape)
        return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


class Blur(Shift):
    """The camera out of focus: a Gaussian with a standard deviation of up to 1.5 % of the frame's width."""

    of_frames = True

    def frames(self, frames: Frames, observation: Observation) -> Frames:
        return {name: self._blurred(frame) for name, frame in frames.items()}

    def _blurred(self, frame: np.ndarray) -> np.ndarray:
        sigma = 0.015 * self.severity * frame.shape[0]
        return np.rint(gaussian_filter(frame.astype(np.float32), (sigma, sigma, 0))).astype(np.uint8)


class Delay(Shift):
    """Actions are taken up to 4 control steps late; until then nothing is done."""

    def __init__(self, severity: float, rng: np.random.Generator) -> None:
        super().__init__(severity, rng)
        self._queue: list[np.ndarray] = []
        self._steps = round(4 * severity)

    def action(self, action: np.ndarray) -> np.ndarray:
        self._queue.append(action)
        return self._queue.pop(0) if len(self._queue) > self._steps else np.zeros_like(action)


SHIFTS: dict[str, type[Shift]] = {
    "lighting": Lighting,
    "colours": Colours,
    "camera": Camera,
    "noise": Noise,
    "blur": Blur,
    "delay": Delay,
}
CHANGED = ("light_diffuse", "light_ambient", "light_dir", "geom_rgba", "cam_pos", "cam_quat")  # of a model


def check_shift(name: str, severity: float) -> None:
    """
    Raises:
        UserError: there is no such shift, or the severity is not between 0 and 1.
    """
    if name not in SHIFTS:
        raise unknown_name("shift", name, SHIFTS)
    if not 0 <= severity <= 1:
        raise UserError(f"the severity of a shift must be between 0 and 1, not {severity:g}")


@contextmanager
def under(env: SuiteEnv, shift: Shift | None) -> Iterator[gymnasium.Env[Observation, np.ndarray]]:
    """The environment under a shift for a while, or as it is."""
    if shift is None:
        yield env
        return
    shifted = Shifted(env, shift)
    try:
        yield shifted
    finally:
        shifted.restore()


class Shifted(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """An environment under a shift; `restore` gives the model back as it was."""

    def __init__(self, env: SuiteEnv, shift: Shift) -> None:
        super().__init__(env)
        self.model, self.data, self.shift = env.model, env.data, shift
        headlight = self.model.vis.headlight
        arrays = [*(getattr(self.model, name) for name in CHANGED), headlight.diffuse, headlight.ambient]
        self._before = [(array, array.copy()) for array in arrays]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        result = self.env.reset(seed=seed, options=options)
        self.shift.model(self.model)
        mujoco.mj_camlight(self.model, self.data)
        return result

    def step(self, action: np.ndarray) -> tuple[Observation, Any, bool, bool, dict]:
        return self.env.step(self.shift.action(action))

    def restore(self) -> None:
        """Undo what the shift did to the model."""
        for array, before in self._before:
            array[:] = before


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)
