"""The cost table: what every arm's eyes and network cost, without simulating."""

import math

import pandas as pd
import torch

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.registry import arm_card, arm_cards
from mrvlm_sim.metrics.cost import acuity, flops, parameters, seed_config, seed_size
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_env


def cost_table(seed_sizes: bool) -> pd.DataFrame:
    """One line per arm, as text; `seed_sizes` asks for a 1024-px sensor and ViT-B instead of the shipped sizes."""
    return pd.DataFrame([_line(name, arm_card(name)[0], seed_sizes) for name in arm_cards()])


def _line(name: str, card: PolicyCard, seed_sizes: bool) -> dict[str, str]:
    pyramids, config = card.cameras, card.network
    if seed_sizes:
        pyramids, config = {c: seed_size(p) for c, p in pyramids.items()}, seed_config(config)
    count = flops(pyramids, config)
    with torch.device("meta"):
        network = PolicyNetwork(pyramids, config)
    env = make_env(card.environment)
    sharpness = [acuity(pyramid, field_of_view(env, camera)) for camera, pyramid in pyramids.items()]
    stages = ("patch_embedding", "context", "fusion", "trunk", "heads")
    return {
        "arm": name,
        "tokens": str(sum(pyramid.tokens for pyramid in pyramids.values())),
        "pixels/deg centre, edge": ", ".join(f"{a.centre_pixels:.2f}, {a.edge_pixels:.2f}" for a in sharpness),
        "tokens/deg centre, edge": ", ".join(f"{a.centre_tokens:.3f}, {a.edge_tokens:.3f}" for a in sharpness),
        "params M": f"{parameters(network) / 1e6:.2f}",
        **{f"GFLOPs {stage.replace('_', ' ')}": f"{getattr(count, stage) / 1e9:.4f}" for stage in stages},
        "GFLOPs/forward": f"{count.total / 1e9:.3f}",
        "GFLOPs/step": f"{count.per_control_step(card.execute) / 1e9:.3f}",
    }


def field_of_view(env: ManipulationEnv, camera: str) -> float:
    """The camera's angle of view in degrees (square frames: the same both ways)."""
    degrees = float(env.scene.model.camera(camera).fovy[0])
    assert math.isfinite(degrees)
    return degrees
