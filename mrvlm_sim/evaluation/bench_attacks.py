"""How fast attacks are: steps per second, against a clean decision, and what batching the draws of the jitter saves."""

import ctypes
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mrvlm_sim.agents.policy import CPU
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.evaluation.bench_tasks import await_device, interleaved
from mrvlm_sim.evaluation.episode import victim_of
from mrvlm_sim.metrics.attacks import Threat
from mrvlm_sim.metrics.attacks.base import Origins, tensors
from mrvlm_sim.metrics.attacks.gradient import PGD
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.sim.env import PROPRIO_SIZE
from mrvlm_sim.sim.suite_env import Observation, encode_instruction
from mrvlm_sim.tasks import make_env

ARMS = ("uniform-256", "uniform-49", "pyramid-48-embedded", "pyramid-48-cross")
DRAWS = 4
SEEN: Observation = {
    "proprio": np.zeros(PROPRIO_SIZE, np.float32),
    "instruction": encode_instruction("put the red cube on the blue pad"),
}


class OneByOne(TrainedPolicy):
    """Looks at every draw of the jitter by itself, as attacks did before draws were batched."""

    def action_chunks(
        self, frames: Mapping[str, Tensor], origins: Mapping[str, np.ndarray], observation: Observation
    ) -> Tensor:
        count = max(len(places) for places in origins.values())
        single = super().action_chunks
        each: list[Origins] = [{c: places[k : k + 1] for c, places in origins.items()} for k in range(count)]
        return torch.cat([single(frames, places, observation) for places in each])


def attacks(repeats: int, device: str) -> pd.DataFrame:
    """A line per arm; memory is what a step takes beyond what is held already, on Linux or of the GPU.

    What a frame for every draw would cost is reckoned from what one frame and one step took.
    """
    lines = []
    with closing(make_env("reach")) as env:
        env.reset(seed=0)
        for arm in ARMS:
            ways = {
                name: _step(arm, kind, device) for name, kind in (("batched", TrainedPolicy), ("one by one", OneByOne))
            }
            size = arm_card(arm)[0].cameras["wrist"].frame_size
            rendered = {"rendered": partial(env.renderer.frame, "wrist", size)}
            spent = interleaved({"clean": _look(arm, device), **ways, **rendered}, repeats)
            draws = DRAWS if arm_card(arm)[0].cameras["wrist"].jitter.amplitude > 0 else 1
            shared, each = (spent["batched"] + frames * spent["rendered"] for frames in (1, draws))
            lines.append(
                {
                    "arm": arm,
                    "steps/s": f"{1 / spent['batched']:.1f}",
                    "step / clean look": f"{spent['batched'] / spent['clean']:.1f}",
                    "one by one / batched": f"{spent['one by one'] / spent['batched']:.2f}",
                    "a frame for every draw / one": f"{each / shared:.2f}",
                    "MiB": _mebibytes(ways["batched"], device),
                }
            )
    return pd.DataFrame(lines)


def _mebibytes(call: Callable[[], object], device: str) -> str:
    """By how much memory peaks in a call."""
    if device != CPU:
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        return f"{(torch.cuda.max_memory_allocated(device) - held) / 2**20:.0f}"
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        before = _held("VmRSS")
        call()
        return f"{(_held('VmHWM') - before) / 1024:.0f}"
    except (OSError, AttributeError):
        return "-"


def _held(name: str) -> int:
    """Of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _policy(arm: str, kind: type[TrainedPolicy], device: str) -> tuple[TrainedPolicy, dict[str, np.ndarray]]:
    card, _ = arm_card(arm)
    frames = {
        c: np.random.default_rng(0).integers(0, 256, (p.frame_size, p.frame_size, 3), dtype=np.uint8)
        for c, p in card.cameras.items()
    }
    return kind(card, PolicyNetwork(card.cameras, card.network), torch.device(device)), frames


def _step(arm: str, kind: type[TrainedPolicy], device: str) -> Callable[[], object]:
    """One gradient over all draws; an arm without jitter has one."""
    policy, frames = _policy(arm, kind, device)
    attack = PGD(Threat(4 / 255, draws=DRAWS), victim_of(policy), np.random.default_rng(0))
    attack.begin(frames, SEEN)
    change = attack.random_change()
    return _awaited(lambda: attack.gradient(change), device)


def _look(arm: str, device: str) -> Callable[[], object]:
    policy, frames = _policy(arm, TrainedPolicy, device)
    origins = {c: p.centred()[None] for c, p in policy.card.cameras.items()}
    seen = tensors(frames, policy)

    @torch.no_grad()
    def look() -> Tensor:
        return policy.action_chunks(seen, origins, SEEN)

    return _awaited(look, device)


def _awaited(call: Callable[[], object], device: str) -> Callable[[], object]:
    def run() -> None:
        call()
        await_device(device)

    return run
