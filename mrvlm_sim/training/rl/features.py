"""An arm's encoder as a features extractor of stable-baselines3, over the observations of `MultiResolutionTokens`."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.agents.trained import load_trained
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork, encode_words
from mrvlm_sim.models.heads import feature_size
from mrvlm_sim.sim.suite_env import INSTRUCTION_BYTES, decode_instruction


class TokenFeatures(BaseFeaturesExtractor):
    """What the action head of an arm reads: mean token, landmarks, proprioception, float32 (B, feature_size).

    Its weights stay what they are when SB3 initialises a policy's layers anew.

    For `MultiInputPolicy` of any algorithm of stable-baselines3: `policy_kwargs={"features_extractor_class":
    TokenFeatures, "features_extractor_kwargs": {"arm": "pyramid-48-cross"}}`. With `trained`, it begins with the arm's
    weights. `mrvlm-sim train rl` runs the same encoder once a step instead of once in every epoch (`EncodedVecEnv`).

    Raises:
        UserError: no such arm, no weights, or the observations lack what the arm sees.
    """

    def __init__(self, observation_space: spaces.Dict, arm: str, trained: bool = False) -> None:
        card, folder = arm_card(arm)
        super().__init__(observation_space, feature_size(card.network))
        for key, shape in seen_by(card.cameras, card.network.proprio_size).items():
            found = observation_space[key].shape if key in observation_space.spaces else None
            if found != shape:
                raise UserError(f"{arm} sees {key} of shape {shape}, the environment shows {found or 'none'}")
        self.network = load_trained(folder).network if trained else PolicyNetwork(card.cameras, card.network)
        self.network.requires_grad_(True)

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Does nothing: SB3 would make every linear layer orthogonal, those of a trained encoder, too."""
        return self

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        return self.network.perceive(*network_inputs(self.network, observations)).features


def seen_by(cameras: Mapping, proprio_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what a network sees, by the keys of observations."""
    shapes: dict[str, tuple[int, ...]] = {"proprio": (proprio_size,), "instruction": (INSTRUCTION_BYTES,)}
    for camera, pyramid in cameras.items():
        shapes[f"{camera}/tokens"] = (pyramid.tokens, pyramid.patch**2 * 3)
        shapes[f"{camera}/boxes"] = (pyramid.tokens, 4)
    return shapes


def network_inputs(
    network: PolicyNetwork, observations: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """Batched observations of the environment, as tensors of any type, in the form that the network takes."""
    tokens = {camera: observations[f"{camera}/tokens"].float() / 255 for camera in network.cameras}
    boxes = {camera: observations[f"{camera}/boxes"].float() for camera in network.cameras}
    instructions = observations["instruction"].to(torch.uint8).cpu().numpy()
    words = torch.stack([_words(row.tobytes()) for row in instructions]).to(observations["proprio"].device)
    return tokens, boxes, observations["proprio"].float(), words


@lru_cache(maxsize=4096)
def _words(encoded: bytes) -> Tensor:
    return encode_words([decode_instruction(np.frombuffer(encoded, np.uint8))])[0]
