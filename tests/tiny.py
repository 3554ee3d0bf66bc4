"""A trained policy that costs next to nothing."""

from pathlib import Path
from typing import Any

import torch

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.agents.trained import save_trained
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.vision import Jitter, Pyramid

PYRAMID = Pyramid(frame_size=128, patch=8, grids=(4, 4, 4), jitter=Jitter(tremor=0.1))
SMALL = {"width": 16, "depth": 1, "heads": 2}


def tiny_card(**network: Any) -> PolicyCard:
    """The card of a shipped arm, with a network and a pyramid that cost next to nothing."""
    card, _ = arm_card("pyramid-48-embedded")
    update = {"execute": 4, "cameras": {"wrist": PYRAMID}, "network": card.network.model_copy(update=SMALL | network)}
    return card.model_copy(update=update)


def save_tiny(folder: Path, eyes: str | None = None, **network: Any) -> Path:
    """A policy folder with random weights that move the arm; returns the folder."""
    card = tiny_card().with_eyes(eyes)
    card = card.model_copy(update={"network": card.network.model_copy(update=network)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = PolicyNetwork(card.cameras, card.network)
    with torch.no_grad():
        for parameter in weights.action_head.parameters():
            parameter.mul_(2)
    save_trained(folder, card, weights, minutes=0.1, device="cpu", versions={"torch": torch.__version__})
    return folder
