"""How the levels of the pyramid meet: as one sequence, with embedded boxes, or by cross-attention.

A fusion takes the embedded patches x (B, N, D) of all cameras, their boxes (B, N, 4) = u, v, h, level and the
context tokens (B, C, D); it returns the sequence that the trunk works on, context first, then the patches whose
indices are its `stream`.
"""

import math

import torch
from torch import Tensor, nn

from mrvlm_sim.models.config import NetworkConfig
from mrvlm_sim.models.vit import Block, CrossBlock

FREQUENCIES = 6
BOX_FEATURES = 3 + 2 * 2 * FREQUENCIES


def box_features(boxes: Tensor) -> Tensor:
    """u, v, log2 h and Fourier features of u and v (Tancik et al., 2020): (..., 4) to (..., BOX_FEATURES)."""
    centres, size = boxes[..., :2], torch.log2(boxes[..., 2:3])
    frequencies = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=boxes.device)
    angles = (centres[..., None] * frequencies).flatten(-2)
    return torch.cat([centres, size / 4, angles.sin(), angles.cos()], dim=-1)


class Fusion(nn.Module):
    """What all fusions have: `stream`, the indices of the patches that come out; all, unless one says otherwise."""

    def __init__(self, token_levels: list[int], config: NetworkConfig) -> None:
        super().__init__()
        self.stream = list(range(len(token_levels)))


class Sequence(Fusion):
    """One learned embedding per index of the sequence, nothing else: the plain ViT."""

    def __init__(self, token_levels: list[int], config: NetworkConfig) -> None:
        super().__init__(token_levels, config)
        self.index = nn.Parameter(0.02 * torch.randn(len(token_levels), config.width))

    def forward(self, x: Tensor, boxes: Tensor, context: Tensor) -> Tensor:
        return torch.cat([context, x + self.index], dim=1)


class Embedded(Fusion):
    """Three embeddings: index in the sequence, level of the pyramid, exact box in the frame."""

    def __init__(self, token_levels: list[int], config: NetworkConfig) -> None:
        super().__init__(token_levels, config)
        self.index = nn.Parameter(0.02 * torch.randn(len(token_levels), config.width))
        self.level = nn.Embedding(max(token_levels) + 1, config.width)
        self.box = nn.Linear(BOX_FEATURES, config.width)
        nn.init.normal_(self.level.weight, std=0.02)

    def forward(self, x: Tensor, boxes: Tensor, context: Tensor) -> Tensor:
        x = x + self.index + self.level(boxes[..., 3].long()) + self.box(box_features(boxes))
        return torch.cat([context, x], dim=1)


class Cross(Fusion):
    """The full view is the main stream; cutouts enter by cross-attention at the input only.

    Cutout tokens carry their box and their index; one block mixes them, then `fusion_depth` cross-attention
    blocks let the context and the full view ask for what they need. The trunk never sees a cutout token.
    """

    def __init__(self, token_levels: list[int], config: NetworkConfig) -> None:
        super().__init__(token_levels, config)
        self.stream = [i for i, level in enumerate(token_levels) if level == 0]
        self.cutouts = [i for i, level in enumerate(token_levels) if level > 0]
        self.main_embedding = Embedded([0] * len(self.stream), config)
        self.cutout_embedding = Embedded([token_levels[i] for i in self.cutouts], config)
        size = config.width, config.heads, config.mlp_ratio
        self.cutout_block = Block(*size)
        self.blocks = nn.ModuleList([CrossBlock(*size) for _ in range(config.fusion_depth)])

    def forward(self, x: Tensor, boxes: Tensor, context: Tensor) -> Tensor:
        nothing = context[:, :0]
        cutouts = self.cutout_embedding(x[:, self.cutouts], boxes[:, self.cutouts], nothing)
        cutouts = self.cutout_block(cutouts)
        stream = self.main_embedding(x[:, self.stream], boxes[:, self.stream], context)
        for block in self.blocks:
            stream = block(stream, cutouts)
        return stream


FUSIONS: dict[str, type[Fusion]] = {"sequence": Sequence, "embedded": Embedded, "cross": Cross}
