"""How fast the suite's environments run behind the wrapper, and where the time goes."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from mrvlm_sim.agents.policy import CPU
from mrvlm_sim.gl import one_render_thread
from mrvlm_sim.tasks import chosen_environments, make_env
from mrvlm_sim.vision import Jitter, Pyramid
from mrvlm_sim.wrappers import MultiResolutionTokens

EYES = Pyramid(frame_size=256, patch=16, grids=(4, 4, 4), jitter=Jitter(tremor=0.1))  # three views of 64 pixels
PARTS = ("physics", "rendering", "tokens")


def tasks(steps: int) -> pd.DataFrame:
    """Steps per second of every environment with one and two processes, shares of the time, and time of a reset."""
    lines = []
    for name in chosen_environments(["all"]):
        alone = step_times(name, steps)
        lines.append(
            {
                "environment": name,
                "steps/s": f"{1 / alone['step']:.0f}",
                "steps/s, 2 processes": f"{_in_two(name, steps):.0f}",
                **{
                    f"% {part}": f"{100 * alone[part] / alone['step']:.0f}"
                    for part in ("physics", "rendering", "tokens")
                },
                "reset ms": f"{1000 * alone['reset']:.1f}",
            }
        )
    return pd.DataFrame(lines)


def step_times(name: str, steps: int) -> dict[str, float]:
    """Mean seconds of a step under random actions and of its parts, and median seconds of a reset without a look."""
    env = make_env(name)
    wrapped = MultiResolutionTokens(env, {"wrist": EYES}, jitter_rng=np.random.default_rng(0))
    spent = {"physics": 0.0, "rendering": 0.0}
    env.step = timed(env.step, spent, "physics")  # type: ignore[method-assign]
    env.renderer.views = timed(env.renderer.views, spent, "rendering")  # type: ignore[method-assign]
    rng, resets = np.random.default_rng(0), list[float]()
    _reset(wrapped, resets)  # warm-up: context, caches
    resets.clear()
    _reset(wrapped, resets)
    spent |= dict.fromkeys(spent, 0.0)
    total = 0.0
    for _ in range(steps):
        started = time.perf_counter()
        *_, terminated, truncated, _ = wrapped.step(rng.uniform(-1, 1, env.action_size).astype(np.float32))
        total += time.perf_counter() - started
        if terminated or truncated:
            looked = spent["rendering"]
            _reset(wrapped, resets)
            spent["rendering"] = looked
    env.close()
    parts = {part: seconds / steps for part, seconds in spent.items()}
    step = total / steps
    return {"step": step, **parts, "tokens": step - sum(parts.values()), "reset": float(np.median(resets))}


def _reset(wrapped: MultiResolutionTokens, seconds: list[float]) -> None:
    """Reset with the next seed; the time is that of the environment, without the first look."""
    started = time.perf_counter()
    wrapped.env.reset(seed=len(seconds))
    seconds.append(time.perf_counter() - started)
    wrapped.reset(seed=len(seconds))


def _in_two(name: str, steps: int) -> float:
    """Steps per second of two processes together."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=one_render_thread) as pool:
        list(pool.map(step_times, [name] * 2, [5] * 2))  # both have started and imported
        return sum(1 / times["step"] for times in pool.map(step_times, [name] * 2, [steps] * 2))


def timed(call: Callable, spent: dict[str, float], part: str) -> Callable:
    """The same call, whose seconds are added to a part of what is spent."""

    def measured(*arguments: object, **options: object) -> object:
        started = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            spent[part] += time.perf_counter() - started

    return measured


def await_device(device: str) -> None:
    """Let a GPU finish what it was given, so that its time is taken, too."""
    if device != CPU:
        torch.cuda.synchronize(device)


def interleaved(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; the ways take turns, so that a drift of the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if repeat > 0:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
