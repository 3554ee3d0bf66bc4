"""Frames of many scenes to pretrain an encoder on, from wherever random pushes lead.

Rollouts show few scenes: eight environments for 128 steps, some twenty. An encoder that learned from rollouts alone was
still 110 mm off the ball that was named after 18,000 steps of `reach`, which is to say that it did not know which one.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context

import numpy as np

from mrvlm_sim.gl import one_render_thread
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training.rl.envs import Frames, WithLandmarks
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.wrappers import MultiResolutionTokens

PUSHES, LONGEST = 3, 6  # at most: pushes in directions of their own, and steps of each
PART = 100  # scenes that a process renders at a time


def random_frames(environment: str, cameras: Mapping[str, Pyramid], scenes: int, seed: int, workers: int) -> Frames:
    """One frame of each scene; frame i depends on the seed and on i alone. Without workers, all is done here."""
    parts = np.array_split(np.arange(scenes), max(1, scenes // PART))
    frames: Frames = {}
    for part, rendered in zip(parts, _rendered(environment, dict(cameras), parts, seed, workers), strict=True):
        for name, values in rendered.items():
            if name not in frames:
                frames[name] = np.empty((scenes, *values.shape[1:]), values.dtype)
            frames[name][part] = values
    return frames


def _rendered(
    environment: str, cameras: Mapping[str, Pyramid], parts: Sequence[np.ndarray], seed: int, workers: int
) -> Iterator[Frames]:
    render = partial(_render, environment, cameras, seed)
    if workers == 0:
        yield from map(render, parts)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), one_render_thread) as pool:
        jobs = [pool.submit(render, part) for part in parts]
        while jobs:
            yield jobs.pop(0).result()  # and forgotten, as they are large


def _render(environment: str, cameras: Mapping[str, Pyramid], seed: int, scenes: np.ndarray) -> Frames:
    with closing(make_own_env(environment)) as env:
        wrapped = MultiResolutionTokens(env, cameras)
        known = WithLandmarks(wrapped, env)
        frames = []
        for scene in scenes.tolist():
            rng = generator(seed, environment, scene, "pretraining")
            observation = _pushed_about(env, integer_seed(seed, environment, scene, "pretraining"), rng)
            frames.append(known.observation(wrapped.look_afresh(observation, rng)))
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


def _pushed_about(env: ManipulationEnv, seed: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    observation, _ = env.reset(seed=seed)
    for _ in range(rng.integers(PUSHES + 1)):
        push = rng.uniform(-1, 1, env.action_size)
        for _ in range(rng.integers(1, LONGEST + 1)):
            observation, *_ = env.step(push)
    return observation
