"""Where the eyes turn: the point of the frame on which the levels of a pyramid are centred."""

from collections.abc import Mapping

import gymnasium
import numpy as np
from gymnasium import spaces

from mrvlm_sim.errors import UserError
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.sight import landmark_places
from mrvlm_sim.vision import Pyramid

AHEAD = np.zeros(2)  # the middle of the frame


class Gaze:
    """The gaze of every camera, look after look; where the policy chooses it, as the last numbers of its actions.

    Raises:
        UserError: an oracle's gaze in an environment that is not the suite's own.
    """

    def __init__(self, pyramids: Mapping[str, Pyramid], env: gymnasium.Env) -> None:
        self.pyramids, self.env = pyramids, env
        self.chosen = {name: AHEAD for name, pyramid in pyramids.items() if pyramid.gaze == "policy"}
        asked = [name for name, pyramid in pyramids.items() if pyramid.gaze == "oracle"]
        if asked and not isinstance(env, ManipulationEnv):
            raise UserError(
                f"camera {asked[0]} has gaze = 'oracle', which knows where things are in the suite's own environments "
                "only; choose centre, random or policy"
            )

    def begin(self, rng: np.random.Generator) -> None:
        """A new episode: straight ahead until the policy says otherwise."""
        self.rng, self.chosen = rng, dict.fromkeys(self.chosen, AHEAD)

    def action_space(self, space: spaces.Box) -> spaces.Box:
        """The environment's actions and two numbers in [-1, 1], u and v, for every gaze that the policy chooses."""
        more = np.ones(2 * len(self.chosen), space.low.dtype)
        return spaces.Box(np.append(space.low, -more), np.append(space.high, more)) if self.chosen else space

    def take(self, action: np.ndarray) -> np.ndarray:
        """What is left of a policy's action for the environment; the rest is where it looks next."""
        if not self.chosen:
            return action
        split = len(action) - 2 * len(self.chosen)
        points = np.clip(np.asarray(action[split:], np.float64), -1, 1).reshape(-1, 2)
        self.chosen = dict(zip(self.chosen, points, strict=True))
        return action[:split]

    def point(self, camera: str) -> np.ndarray | None:
        """Frame coordinates (2,) of this look's gaze; None: the middle of every parent."""
        match self.pyramids[camera].gaze:
            case "policy":
                return self.chosen[camera]
            case "random":
                return self.rng.uniform(-1, 1, 2)
            case "oracle":
                assert isinstance(self.env, ManipulationEnv)
                return named_place(self.env, camera)
        return None


def named_place(env: ManipulationEnv, camera: str) -> np.ndarray:
    """Where a camera sees the thing that the instruction names, as a gaze."""
    return gaze_at(landmark_places(env.scene, camera, env.task.landmarks(env.scene)))


def gaze_at(places: np.ndarray) -> np.ndarray:
    """The gaze (..., 2) that looks at the named thing, the first of the places (..., K, 2) of all landmarks.

    At the edge of the frame if it is beyond, straight ahead if it is behind the camera.
    """
    return np.clip(np.nan_to_num(places[..., 0, :]), -1, 1)
