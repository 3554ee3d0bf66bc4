"""Meta-World behind Gymnasium as it should be: a seed determines the initial state.

By itself Meta-World ignores `reset(seed=...)` and starts every episode alike, or as numpy's global state has it.
"""

import warnings
from typing import Any

import gymnasium
import metaworld  # noqa: F401 (registers its environments)
import numpy as np

warnings.filterwarnings("ignore", "Constant.s. may be too high")  # its experts, at every episode; actions are clipped
ID = "mrvlm_sim/MetaWorld-v3"  # the card says: mrvlm_sim.sim.metaworld:mrvlm_sim/MetaWorld-v3


class SeededMetaWorld(gymnasium.Wrapper):
    """One task of Meta-World, goal visible; the info of its reset says whether it begins solved."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        base: Any = env.unwrapped
        self.observation_space = base.sawyer_observation_space  # of the visible goal; env's own is of the hidden one

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        base: Any = self.unwrapped
        if seed is not None:
            base.seed(seed)
        base.seeded_rand_vec, base._freeze_rand_vec = True, False
        observation, info = self.env.reset(seed=seed, options=options)
        _, judged = base.evaluate_state(observation, np.zeros(base.action_space.shape, np.float32))
        return observation, {**info, "success": judged["success"]}


def make_task(task: str) -> gymnasium.Env:
    """The environment of `task`, for example `reach-v3`."""
    env = gymnasium.make("Meta-World/goal_observable", env_name=task, seed=0, disable_env_checker=True)
    return SeededMetaWorld(env.unwrapped)


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point="mrvlm_sim.sim.metaworld:make_task")
