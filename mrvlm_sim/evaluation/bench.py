"""Speed on this machine, as ratios within one run: absolute times depend on the machine, ratios much less."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import torch

from mrvlm_sim.agents.policy import CPU
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.evaluation import bench_attacks, bench_engine, bench_rl, bench_tasks
from mrvlm_sim.gl import one_render_thread, renderer_name
from mrvlm_sim.models import NetworkConfig, PolicyNetwork, encode_words
from mrvlm_sim.seeding import integer_seed
from mrvlm_sim.sim.suite_env import SuiteEnv
from mrvlm_sim.tasks import make_env
from mrvlm_sim.training.bc import losses
from mrvlm_sim.training.dataset import Batch
from mrvlm_sim.vision import Jitter, JitterProcess, Pyramid, cut, quantise
from mrvlm_sim.wrappers import MultiResolutionTokens

ENVIRONMENT = "pick_place"
SEED_PYRAMID = Pyramid(frame_size=1024, patch=64, grids=(4, 4, 4), jitter=Jitter(tremor=0.1))
ARMS = ("uniform-256", "uniform-49", "pyramid-48-sequence", "pyramid-48-embedded", "pyramid-48-cross")
BATCH = 32  # of training
TOGETHER = 64  # episodes that a GPU decides on at once
INSTRUCTION = "put the red cube on the blue pad"

Measure = Callable[[], pd.DataFrame]


def measurements(quick: bool, device: str = CPU) -> Iterator[tuple[str, Measure]]:
    """Titles and the measurements behind them, to be made one after the other; on a GPU, of what is done there."""
    repeats = 3 if quick else 15
    torch.set_num_threads(1)
    one_render_thread()
    yield f"rendering by {renderer_name()}, S=1024, three 256-px levels, 4x multisampling", lambda: rendering(repeats)
    yield from _networks(repeats, device)
    if device == CPU:
        yield from _processes(quick, repeats)


def _networks(repeats: int, device: str) -> Iterator[tuple[str, Measure]]:
    where = "one thread" if device == CPU else torch.cuda.get_device_name(device)
    yield f"act, batch 1, {where}, no rendering", lambda: acting(repeats, device, 1)
    if device != CPU:
        yield f"act, batch {TOGETHER}, {where}, no rendering", lambda: acting(repeats, device, TOGETHER)
    title = f"training step, batch {BATCH}, {where}, no rendering"
    yield title, lambda: training(max(2, repeats // 4), device)
    title = f"attacks, PGD over {bench_attacks.DRAWS} draws of the jitter, {where}, no rendering"
    yield title, lambda: bench_attacks.attacks(max(2, repeats // 4), device)


def _processes(quick: bool, repeats: int) -> Iterator[tuple[str, Measure]]:
    yield f"episodes of {bench_engine.ARM}, workers warm", lambda: bench_engine.engine(6 if quick else 100)
    yield "environments, three 64-px views", lambda: bench_tasks.tasks(20 if quick else 300)
    title = f"reinforcement learning of {bench_rl.ENVIRONMENT}, {bench_rl.ENVIRONMENTS} environments"
    yield title, lambda: bench_rl.reinforcement(16 if quick else 128)
    yield "store", lambda: bench_engine.store(50 if quick else 1000)
    yield "remote policy", lambda: bench_engine.remote(4 * repeats)


def rendering(repeats: int) -> pd.DataFrame:
    """Both sources of views, and what the wrapper adds to bare rendering of the same pixels."""
    env = make_env(ENVIRONMENT)
    env.reset(seed=integer_seed(0, ENVIRONMENT, 0, "initial state"))
    jitter = JitterProcess(SEED_PYRAMID.jitter, SEED_PYRAMID.levels, np.random.default_rng(0))
    wrapped = {source: MultiResolutionTokens(env, {"wrist": SEED_PYRAMID}, source) for source in ("sensor", "nested")}
    for wrapper in wrapped.values():
        wrapper.reset(seed=0)
    ways: dict[str, Callable[[], object]] = {
        "sensor: render, cut": lambda: _sensor_views(env, SEED_PYRAMID.place(jitter.next())),
        "nested: render": lambda: _nested_views(env, SEED_PYRAMID.place(jitter.next())),
        "nested, wrapper": lambda: wrapped["nested"].look({}),
        "sensor, wrapper": lambda: wrapped["sensor"].look({}),
        "sensor: render only": lambda: env.renderer.frame("wrist", SEED_PYRAMID.frame_size),
    }
    times = bench_tasks.interleaved(ways, repeats)
    env.close()
    overhead = times["nested, wrapper"] / times["nested: render"] - 1
    return pd.DataFrame(
        [{"what": name, "ms per frame": f"{1000 * seconds:.1f}"} for name, seconds in times.items()]
        + [
            _ratio("nested over sensor (pixel ratio 5.33)", times["sensor: render, cut"] / times["nested: render"]),
            {"what": "wrapper's overhead, nested", "ms per frame": f"{100 * overhead:+.1f} %"},
        ]
    )


def acting(repeats: int, device: str, batch: int) -> pd.DataFrame:
    """Latency of every arm's decision for so many episodes at once."""
    ways = {name: _decision(name, device, batch) for name in ARMS}
    times = bench_tasks.interleaved(ways, 4 * repeats)
    return _against_reference(times, "ms per decision")


def training(repeats: int, device: str) -> pd.DataFrame:
    """Time of one training step of every arm, without rendering."""
    times = bench_tasks.interleaved({name: _training_step(name, device) for name in ARMS}, repeats)
    return _against_reference(times, "ms per step")


def _sensor_views(env: SuiteEnv, origins: np.ndarray) -> list[np.ndarray]:
    frame = env.renderer.frame("wrist", SEED_PYRAMID.frame_size)
    return [quantise(view) for view in cut(frame, origins, SEED_PYRAMID)]


def _nested_views(env: SuiteEnv, origins: np.ndarray) -> list[np.ndarray]:
    return env.renderer.views("wrist", SEED_PYRAMID.boxes(origins), SEED_PYRAMID.view_sizes)


def _decision(name: str, device: str, batch: int) -> Callable[[], object]:
    card, _ = arm_card(name)
    policy = TrainedPolicy(card, PolicyNetwork(card.cameras, card.network), torch.device(device))
    observation = {"proprio": np.zeros((batch, card.network.proprio_size), np.float32)}
    for camera, pyramid in card.cameras.items():
        observation[f"{camera}/tokens"] = np.zeros((batch, pyramid.tokens, pyramid.patch**2 * 3), np.uint8)
        observation[f"{camera}/boxes"] = np.repeat(pyramid.token_boxes(pyramid.centred())[None], batch, axis=0)
    words = encode_words([INSTRUCTION] * batch).to(device)
    return lambda: policy.decide(observation, words)


def _training_step(name: str, device: str) -> Callable[[], object]:
    card, _ = arm_card(name)
    network = PolicyNetwork(card.cameras, card.network).to(device)
    with torch.device(device):
        batch = _training_batch(card.cameras, network.config)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        action_error, landmark_error = losses(network, batch)
        optimiser.zero_grad()
        (action_error + landmark_error).backward()
        optimiser.step()
        bench_tasks.await_device(device)

    return step


def _training_batch(cameras: Mapping[str, Pyramid], config: NetworkConfig) -> Batch:
    """What one step learns from: noise, on torch's default device."""
    boxes = {c: torch.tensor(p.token_boxes(p.centred())) for c, p in cameras.items()}
    return Batch(
        tokens={c: torch.rand(BATCH, p.tokens, p.patch**2 * 3) for c, p in cameras.items()},
        boxes={c: each.expand(BATCH, -1, -1) for c, each in boxes.items()},
        proprio=torch.zeros(BATCH, config.proprio_size),
        words=encode_words([INSTRUCTION] * BATCH),
        actions=torch.zeros(BATCH, config.chunk, config.action_size),
        valid=torch.ones(BATCH, config.chunk, dtype=torch.bool),
        landmarks=torch.zeros(BATCH, config.landmarks, 3),
        shown={c: torch.zeros(BATCH, config.landmarks, p.tokens, dtype=torch.bool) for c, p in cameras.items()},
    )


def _against_reference(times: dict[str, float], unit: str) -> pd.DataFrame:
    reference = times["uniform-256"]
    return pd.DataFrame(
        [
            {"arm": n, unit: f"{1000 * t:.1f}", "faster than uniform-256": f"{reference / t:.2f}x"}
            for n, t in times.items()
        ]
    )


def _ratio(name: str, ratio: float) -> dict[str, str]:
    return {"what": name, "ms per frame": f"{ratio:.2f}x"}
