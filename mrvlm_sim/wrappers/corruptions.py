"""Corruptions: shifts of what the camera delivers, from severity 0 (nothing) to 1, the same to the bit for one seed."""

import imageio.v3 as iio
import numpy as np
from scipy.ndimage import gaussian_filter

from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.wrappers.shift import Shift
from mrvlm_sim.wrappers.tokens import Frames


class Corruption(Shift):
    """Changes frames one by one; a new one fills `changed`."""

    of_frames = True

    def frames(self, frames: Frames, observation: Observation) -> Frames:
        return {name: self.changed(frame) for name, frame in frames.items()}

    def changed(self, frame: np.ndarray) -> np.ndarray:
        """The frame, uint8 (S, S, 3), that is delivered instead."""
        raise NotImplementedError


class Noise(Corruption):
    """Gaussian noise of the sensor, with a standard deviation of up to 20 % of the pixel range."""

    def changed(self, frame: np.ndarray) -> np.ndarray:
        noise = self.rng.normal(0, 51 * self.severity, frame.shape)
        return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


class Blur(Corruption):
    """The camera out of focus: a Gaussian with a standard deviation of up to 1.5 % of the frame's width."""

    def changed(self, frame: np.ndarray) -> np.ndarray:
        sigma = 0.015 * self.severity * frame.shape[0]
        return np.rint(gaussian_filter(frame.astype(np.float32), (sigma, sigma, 0))).astype(np.uint8)


class Brightness(Corruption):
    """Exposure up or down: all values by up to 50 % of the range, one way in each episode."""

    def __init__(self, severity: float, rng: np.random.Generator) -> None:
        super().__init__(severity, rng)
        self._change = 127.5 * severity * rng.choice([-1, 1])

    def changed(self, frame: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(frame + self._change), 0, 255).astype(np.uint8)


class Compression(Corruption):
    """JPEG, of a quality from 95 down to 5."""

    def changed(self, frame: np.ndarray) -> np.ndarray:
        if self.severity == 0:
            return frame
        return iio.imread(iio.imwrite("<bytes>", frame, extension=".jpg", quality=round(95 - 90 * self.severity)))


class Occlusion(Corruption):
    """Dirt on the lens: a grey disc of up to a quarter of the frame's area, in one place in each episode."""

    def __init__(self, severity: float, rng: np.random.Generator) -> None:
        super().__init__(severity, rng)
        self._place, self._grey = rng.uniform(-1, 1, 2), int(rng.integers(40, 90))

    def changed(self, frame: np.ndarray) -> np.ndarray:
        size = frame.shape[0]
        centres = (2 * np.arange(size) + 1) / size - 1
        away = np.hypot(centres[None] - self._place[0], centres[:, None] - self._place[1])
        covered = away < 2 * (0.25 * self.severity / np.pi) ** 0.5  # the frame's area is 4
        return np.where(covered[..., None], np.uint8(self._grey), frame)
