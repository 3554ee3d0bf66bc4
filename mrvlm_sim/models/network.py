"""The one network of all arms: patches, fusion, trunk, heads."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mrvlm_sim.models.config import NetworkConfig
from mrvlm_sim.models.fusion import FUSIONS
from mrvlm_sim.models.heads import LANDMARK_SCALE, ActionHead, LandmarkHead
from mrvlm_sim.models.instruction import InstructionEncoder
from mrvlm_sim.models.patches import PatchEmbedding
from mrvlm_sim.models.vit import Block
from mrvlm_sim.vision import Pyramid


class Perception(NamedTuple):
    """What a network makes of its inputs before it acts, in float32: millimetres count."""

    features: Tensor  # (B, feature_size): what the action head reads
    landmarks: Tensor  # (B, K, 3) in metres
    votes: Tensor  # (B, K, M, 3) of the sequence's tokens, context first, in metres
    scores: Tensor  # (B, K, M): the votes' weights before the softmax


class PolicyNetwork(nn.Module):
    """Token observations to a chunk of actions.

    Inputs of `forward`, for cameras with N tokens in all:
        tokens: per camera (B, N_camera, patch*patch*3), pixel values in [0, 1], float
        boxes: per camera (B, N_camera, 4) = u, v, h, level
        proprio: (B, proprio_size), in the units of the environment (normalised inside)
        words: int64 (B, MAX_PIECES), from `encode_words`
    Returns the actions (B, chunk, action_size), unclipped, and the landmarks (B, K, 3) in metres.
    """

    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, pyramids: Mapping[str, Pyramid], config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.config, self.cameras = config, list(pyramids)
        self.register_buffer("proprio_mean", torch.zeros(config.proprio_size))
        self.register_buffer("proprio_std", torch.ones(config.proprio_size))
        self.patches = nn.ModuleDict({name: PatchEmbedding(p.patch, width) for name, p in pyramids.items()})
        self.camera = nn.ParameterDict({name: 0.02 * torch.randn(width) for name in pyramids})
        self.instruction = InstructionEncoder(width, config.instruction_tokens)
        self.proprio = nn.Linear(config.proprio_size, width)
        levels = np.concatenate([pyramid.token_levels for pyramid in pyramids.values()]).tolist()
        self.fusion = FUSIONS[config.fusion](levels, config)
        self.trunk = nn.Sequential(*(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(width)
        self.landmark_head, self.action_head = LandmarkHead(config), ActionHead(config)

    def forward(
        self, tokens: Mapping[str, Tensor], boxes: Mapping[str, Tensor], proprio: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen = self.perceive(tokens, boxes, proprio, words)
        return self.act(seen.features), seen.landmarks

    def act(self, features: Tensor) -> Tensor:
        """The actions, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            actions = self.action_head(features).unflatten(1, (self.config.chunk, -1))
        return actions.tanh() if self.config.squashed else actions

    def perceive(
        self, tokens: Mapping[str, Tensor], boxes: Mapping[str, Tensor], proprio: Tensor, words: Tensor
    ) -> Perception:
        """All but the actions.

        The mean of the tokens learns faster than a class token (Beyer et al., "Better plain ViT baselines", 2022).
        """
        sequence, context = self.encode(tokens, boxes, proprio, words)
        with torch.autocast(sequence.device.type, enabled=False):
            seen, instruction = self.norm(sequence.float()), context[:, 1:].float().mean(dim=1)
            landmarks, votes, scores = self.landmark_head(seen, instruction)
            features = [seen.mean(dim=1), landmarks.flatten(1), self.normalise(proprio).float()]
        return Perception(torch.cat(features, dim=1), LANDMARK_SCALE * landmarks, LANDMARK_SCALE * votes, scores)

    def encode(
        self, tokens: Mapping[str, Tensor], boxes: Mapping[str, Tensor], proprio: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The trunk's sequence (B, M, width), and the context (B, 1 + instruction_tokens, width) it began with."""
        context = self.embed_context(self.normalise(proprio), words)
        sequence = self.fusion(self.embed_patches(tokens), torch.cat([boxes[c] for c in self.cameras], 1), context)
        return self.trunk(sequence), context

    def normalise(self, proprio: Tensor) -> Tensor:
        """Proprioception by the mean and spread of the training set."""
        return (proprio - self.proprio_mean) / self.proprio_std

    def embed_patches(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Patches of all cameras as (B, N, width)."""
        embedded = [self.patches[c](tokens[c]) + self.camera[c] for c in self.cameras]
        return torch.cat(embedded, dim=1)

    def embed_context(self, proprio: Tensor, words: Tensor) -> Tensor:
        """Normalised proprioception and instruction as tokens: (B, 1 + instruction_tokens, width)."""
        return torch.cat([self.proprio(proprio)[:, None], self.instruction(words)], dim=1)
