"""Looking around before learning to act: single frames of many scenes, from wherever random pushes lead.

Rollouts show few scenes: eight environments for 128 steps, some twenty. An encoder that learned from rollouts alone was
still 110 mm off the ball that was named after 18,000 steps of `reach`, which is to say that it did not know which one.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from mrvlm_sim.gl import one_render_thread
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training.rl.envs import Frames, WithLandmarks
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.wrappers import MultiResolutionTokens

PUSHES, LONGEST = 3, 6  # at most: pushes in directions of their own, and steps of each
PART = 100  # scenes that a process looks at at a time


def look_around(environment: str, cameras: Mapping[str, Pyramid], scenes: int, seed: int, workers: int) -> Frames:
    """One frame of each scene; frame i depends on the seed and on i alone."""
    parts = np.array_split(np.arange(scenes), max(1, scenes // PART))
    jobs = [(environment, dict(cameras), part.tolist(), seed) for part in parts]
    if workers == 0:
        done = [_look(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), one_render_thread) as pool:
            done = [*pool.map(_look, *zip(*jobs, strict=True))]
    return {name: np.concatenate([frames[name] for frames in done]) for name in done[0]}


def _look(environment: str, cameras: Mapping[str, Pyramid], scenes: Sequence[int], seed: int) -> Frames:
    own = make_own_env(environment)
    eyes = MultiResolutionTokens(own, cameras)
    seeing, frames = WithLandmarks(eyes, own), list[dict[str, np.ndarray]]()
    for scene in scenes:
        rng = generator(seed, environment, scene, "looking around")
        observation, _ = own.reset(seed=integer_seed(seed, environment, scene, "looking around"))
        for _ in range(rng.integers(PUSHES + 1)):
            push = rng.uniform(-1, 1, own.action_size)
            for _ in range(rng.integers(1, LONGEST + 1)):
                observation, *_ = own.step(push)
        frames.append(seeing.observation(eyes.look_afresh(observation, rng)))
    own.close()
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
