"""What the machinery around episodes costs: engine, store, remote policies, and the usual loop beside it."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from mrvlm_sim.agents.policy import EpisodeStart, Policy, batch_of_one, requirements_of
from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.agents.remote import RemotePolicy
from mrvlm_sim.agents.serve import policy_server
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.evaluation.runner import Job, Workers
from mrvlm_sim.evaluation.store import Key, RunStore
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.suite_env import SuiteEnv, decode_instruction
from mrvlm_sim.tasks import make_env
from mrvlm_sim.wrappers import MultiResolutionTokens

START_TIME = 120.0  # seconds
ENVIRONMENT, ARM = "pick_place", "pyramid-48-embedded"
CORES = 2
Table = list[dict[str, str]]


def engine(episodes: int) -> pd.DataFrame:
    """The same episodes by a bare loop of environment and policy, by the engine, and by a vector environment."""
    seconds = _alternately({"bare": _bare_loop(), "engine": _engine_loop()}, range(episodes))
    lines: Table = [
        _rate("bare loop of environment and policy", episodes / seconds["bare"]),
        _rate("engine, in this process", episodes / seconds["engine"]),
        {"what": "engine's overhead per episode", "": f"{100 * (seconds['engine'] / seconds['bare'] - 1):+.1f} %"},
    ]
    rates = {count: _workers_rate(count, episodes) for count in (1, CORES)}
    lines += [_rate(f"engine, {count} worker{'s' * (count > 1)}", rate) for count, rate in rates.items()]
    vector = _vector_rate(episodes)
    lines += [
        _ratio(f"{CORES} workers over 1", rates[CORES] / rates[1]),
        _rate(f"Gymnasium's AsyncVectorEnv of {CORES}, batches until all are done", vector),
        _ratio(f"engine with {CORES} workers over it", rates[CORES] / vector),
    ]
    return pd.DataFrame(lines)


def store(writes: int) -> pd.DataFrame:
    """Episodes written per second, each in a transaction of its own."""
    env = make_env(ENVIRONMENT)
    record = run_episode(env, ENVIRONMENT, load_policy("expert"), "expert", Condition(), 0, 0)
    env.close()
    with tempfile.TemporaryDirectory() as folder, RunStore(Path(folder) / "run") as run:
        run.plan(Key("expert", "clean", 0, episode) for episode in range(writes))
        started = time.perf_counter()
        for episode in range(writes):
            run.add(replace(record, episode=episode))
        seconds = time.perf_counter() - started
    return pd.DataFrame([{"what": "writes per second", "": f"{writes / seconds:.0f}"}])


def remote(decisions: int) -> pd.DataFrame:
    """Latency of one decision here and through `mrvlm-sim serve` in another process, alternately."""
    observation = _first_observation()
    with _server() as address:
        policies: dict[str, Any] = {"in this process": load_policy(ARM), "served": RemotePolicy(address)}
        times: dict[str, list[float]] = {name: [] for name in policies}
        for number in range(decisions + 1):
            for name, policy in policies.items():
                policy.reset([EpisodeStart("put it there", np.random.default_rng(0), action_size=5)])
                started = time.perf_counter()
                policy.act(observation)
                if number > 0:  # the first is a warm-up
                    times[name].append(1000 * (time.perf_counter() - started))
        policies["served"].close()
    here, there = (float(np.median(values)) for values in times.values())
    added = {"policy": "added by the way there and back", "ms per decision": f"{there - here:+.1f}"}
    lines = [{"policy": name, "ms per decision": f"{np.median(values):.1f}"} for name, values in times.items()]
    return pd.DataFrame([*lines, added])


def _bare_loop() -> Callable[[int], None]:
    env, policy = make_env(ENVIRONMENT), load_policy(ARM)

    def play(episode: int) -> None:
        wrapped = _looking(env, policy, episode)
        observation, info = wrapped.reset(seed=_seed(episode))
        policy.reset([_start(info["instruction"])])
        over = False
        while not over:
            observation, _, terminated, truncated, _ = wrapped.step(policy.act(batch_of_one(observation))[0])
            over = terminated or truncated

    return play


def _engine_loop() -> Callable[[int], None]:
    env, policy = make_env(ENVIRONMENT), load_policy(ARM)

    def play(episode: int) -> None:
        run_episode(env, ENVIRONMENT, policy, ARM, Condition(), 0, episode)

    return play


def _alternately(ways: dict[str, Callable[[int], None]], episodes: Iterable[int]) -> dict[str, float]:
    """Seconds that each way took for all episodes; the ways take turns, the first episode is played once more."""
    seconds = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way(0)
    for episode in episodes:
        for name, way in ways.items():
            started = time.perf_counter()
            way(episode)
            seconds[name] += time.perf_counter() - started
    return seconds


def _workers_rate(count: int, episodes: int) -> float:
    """Episodes per second of worker processes that have started and loaded all they need."""
    with Workers(count) as workers:
        for _ in workers.run(_jobs(range(-4 * count, 0))):
            pass
        started = time.perf_counter()
        done = sum(1 for _ in workers.run(_jobs(range(episodes))))
        return done / (time.perf_counter() - started)


def _jobs(episodes: Iterable[int]) -> list[Job]:
    return [Job(ENVIRONMENT, ARM, ARM, Condition(), 0, abs(episode)) for episode in episodes]


def _vector_rate(episodes: int) -> float:
    """Episodes per second of the usual loop: environments in processes, one batched policy, a batch until all end.

    So LeRobot evaluates; who ends early begins another episode, which is not counted.
    """
    policy = load_policy(ARM)
    envs = AsyncVectorEnv(
        [partial(_vector_member, index) for index in range(CORES)],
        context="spawn", autoreset_mode=AutoresetMode.NEXT_STEP,
    )  # fmt: skip
    _play_batch(envs, policy, range(CORES))
    started = time.perf_counter()
    for first in range(0, episodes, CORES):
        _play_batch(envs, policy, range(first, first + CORES))
    seconds = time.perf_counter() - started
    envs.close()
    return -(-episodes // CORES) * CORES / seconds


def _vector_member(index: int) -> gymnasium.Env:
    return _looking(make_env(ENVIRONMENT), load_policy(ARM), index)


def _play_batch(envs: AsyncVectorEnv, policy: Policy, episodes: Sequence[int]) -> None:
    observation, _ = envs.reset(seed=[_seed(episode) for episode in episodes])
    texts = [decode_instruction(text) for text in observation["instruction"]]
    policy.reset([_start(text) for text in texts])
    over = np.zeros(len(episodes), dtype=bool)
    while not over.all():
        actions = policy.act({**observation, "instruction": texts})
        observation, _, terminated, truncated, _ = envs.step(actions)
        over |= terminated | truncated


def _looking(env: SuiteEnv, policy: Policy, episode: int) -> MultiResolutionTokens:
    needs = requirements_of(policy)
    jitter = generator(0, ENVIRONMENT, episode, "jitter")
    return MultiResolutionTokens(env, needs.cameras, frame_interval=needs.frame_interval, jitter_rng=jitter)


def _seed(episode: int) -> int:
    return integer_seed(0, ENVIRONMENT, episode, "initial state")


def _start(instruction: str) -> EpisodeStart:
    return EpisodeStart(instruction, np.random.default_rng(0), action_size=5)


def _first_observation() -> dict[str, Any]:
    env = make_env(ENVIRONMENT)
    observation, _ = _looking(env, load_policy(ARM), 0).reset(seed=_seed(0))
    env.close()
    return batch_of_one(observation)


@contextmanager
def _server() -> Iterator[str]:
    """The address of a policy server in a process of its own."""
    context = get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=_serve, args=(ports,), daemon=True)
    process.start()
    try:
        yield f"ws://127.0.0.1:{ports.get(timeout=START_TIME)}"
    finally:
        process.terminate()
        process.join()


def _serve(ports: Any) -> None:
    with policy_server(ARM, "127.0.0.1", 0) as server:
        ports.put(server.socket.getsockname()[1])
        server.serve_forever()


def _rate(what: str, per_second: float) -> dict[str, str]:
    return {"what": what, "": f"{60 * per_second:.0f} episodes/min"}


def _ratio(what: str, ratio: float) -> dict[str, str]:
    return {"what": what, "": f"{ratio:.2f}x"}
