"""The cost table: what every arm's eyes and network cost, without simulating."""

import math

import pandas as pd
import torch

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.registry import arm_card, arm_cards
from mrvlm_sim.metrics.cost import acuity, flops, parameters, seed_config, seed_size
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.sim.suite_env import SuiteEnv
from mrvlm_sim.tasks import make_env

SIZES = {"shipped sizes": False, "seed sizes (1024-px sensor, ViT-B)": True}
STAGES = ("patch_embedding", "context", "fusion", "trunk", "heads")


def cost_tables() -> dict[str, pd.DataFrame]:
    """Two tables of text for each size, by title: acuity and totals, and GFLOPs by stage; one line per arm."""
    arms = {name: arm_card(name)[0] for name in arm_cards()}
    tables = {}
    for size, seed_sizes in SIZES.items():
        sized = {name: _sized(card, seed_sizes) for name, card in arms.items()}
        tables[f"{size}: acuity and cost"] = pd.DataFrame([_totals(name, card) for name, card in sized.items()])
        tables[f"{size}: GFLOPs by stage"] = pd.DataFrame([_stages(name, card) for name, card in sized.items()])
    return tables


def _sized(card: PolicyCard, seed_sizes: bool) -> PolicyCard:
    if not seed_sizes:
        return card
    cameras = {camera: seed_size(pyramid) for camera, pyramid in card.cameras.items()}
    return card.model_copy(update={"cameras": cameras, "network": seed_config(card.network)})


def _totals(name: str, card: PolicyCard) -> dict[str, str]:
    with torch.device("meta"):
        network = PolicyNetwork(card.cameras, card.network)
    env = make_env(card.environments[0])
    sharpness = [acuity(pyramid, field_of_view(env, camera)) for camera, pyramid in card.cameras.items()]
    count = flops(card.cameras, card.network)
    return {
        "arm": name,
        "tokens": str(sum(pyramid.tokens for pyramid in card.cameras.values())),
        "pixels/deg centre | edge": ", ".join(f"{a.centre_pixels:.2f} | {a.edge_pixels:.2f}" for a in sharpness),
        "tokens/deg centre | edge": ", ".join(f"{a.centre_tokens:.3f} | {a.edge_tokens:.3f}" for a in sharpness),
        "params M": f"{parameters(network) / 1e6:.2f}",
        "GFLOPs/forward": f"{count.total / 1e9:.3f}",
        "GFLOPs/step": f"{count.per_control_step(card.execute) / 1e9:.3f}",
    }


def _stages(name: str, card: PolicyCard) -> dict[str, str]:
    count = flops(card.cameras, card.network)
    return {"arm": name, **{stage.replace("_", " "): f"{getattr(count, stage) / 1e9:.4f}" for stage in STAGES}}


def field_of_view(env: SuiteEnv, camera: str) -> float:
    """The camera's angle of view in degrees (square frames: the same both ways)."""
    degrees = float(env.model.camera(env.renderer.cameras[camera]).fovy[0])
    assert math.isfinite(degrees)
    return degrees
