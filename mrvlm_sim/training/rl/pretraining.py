"""Many scenes to pretrain an encoder on, from wherever random pushes lead.

Rollouts show few scenes: eight environments for 128 steps, some twenty. An encoder that learned from rollouts alone was
still 110 mm off the ball that was named after 18,000 steps of `reach`, which is to say that it did not know which one.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training.rl.envs import Frames
from mrvlm_sim.training.scenes import Known, look_around, render_scenes, stack
from mrvlm_sim.training.views import MarginViews
from mrvlm_sim.vision import Pyramid

PUSHES, LONGEST = 3, 6  # at most: pushes in directions of their own, and steps of each
CHECKED = 400  # scenes at most that are not trained on


@dataclass(frozen=True)
class RandomScenes:
    """One look at each of N scenes, cut with fresh jitter every time."""

    views: dict[str, MarginViews]
    known: Known  # proprio, instruction and landmarks

    def __len__(self) -> int:
        return len(self.known["landmarks"])

    @property
    def checked(self) -> int:
        """So many of the first scenes are there to check on, and the others to learn from."""
        return min(CHECKED, len(self) // 8)

    def look(self, chosen: np.ndarray, rng: np.random.Generator) -> Frames:
        """Observations of some of the scenes, as `training_env` gives them."""
        frames = {name: values[chosen] for name, values in self.known.items()}
        for camera, views in self.views.items():
            frames |= {f"{camera}/{name}": values for name, values in views.look(chosen, rng)._asdict().items()}
        return frames


def random_scenes(
    environment: str, cameras: Mapping[str, Pyramid], count: int, seed: int, workers: int
) -> RandomScenes:
    """Scene i depends on the seed and on i alone. Without workers, all is rendered in this process."""
    render = partial(_render, environment, dict(cameras), seed)
    return RandomScenes(*render_scenes(cameras, count, render, workers))


def _render(environment: str, cameras: Mapping[str, Pyramid], seed: int, scenes: np.ndarray) -> Known:
    known: list[Known] = []
    with closing(make_own_env(environment)) as env:
        for scene in scenes.tolist():
            rng = generator(seed, environment, scene, "pretraining")
            observation = _pushed_about(env, integer_seed(seed, environment, scene, "pretraining"), rng)
            landmarks = env.task.landmarks(env.scene)
            seen = look_around(env.scene, env.renderer, cameras, landmarks, rng)
            known.append({**observation, "landmarks": landmarks, **seen})
    return stack(known)


def _pushed_about(env: ManipulationEnv, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    observation, _ = env.reset(seed=seed)
    for _ in range(rng.integers(PUSHES + 1)):
        push = rng.uniform(-1, 1, env.action_size)
        for _ in range(rng.integers(1, LONGEST + 1)):
            try:
                observation, *_ = env.step(push)
            except FloatingPointError:  # the simulation diverged: the scene is seen as it began
                return env.reset(seed=seed)[0]
    return observation
