"""The patch embedding: a linear layer that starts as a discrete cosine transform instead of noise.

Its first rows are the lowest spatial frequencies of each colour, so that the place of a blob inside a large patch can
be read from the first update on. Training is free to change it.
"""

import math

import torch
from torch import Tensor, nn

GAIN = 2.4  # of the basis, so that ordinary images give tokens of about unit size


class PatchEmbedding(nn.Linear):
    """Tokens (..., patch * patch * 3) with values in [0, 1] to (..., width)."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__(patch * patch * 3, width)
        with torch.no_grad():
            self.weight.copy_(GAIN / patch * cosine_basis(patch, width))
            self.bias.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward((tokens - 0.5) / 0.25)


def cosine_basis(patch: int, width: int) -> Tensor:
    """The `width` lowest DCT-II functions of an RGB patch, lowest first, orthonormal: (width, patch * patch * 3)."""
    x = (torch.arange(patch) + 0.5) / patch
    order = sorted(((i, j) for i in range(patch) for j in range(patch)), key=lambda ij: (sum(ij), ij))
    rows = []
    for i, j in order[: math.ceil(width / 3)]:
        scale = math.sqrt(1 if i == 0 else 2) * math.sqrt(1 if j == 0 else 2) / patch
        function = scale * torch.outer(torch.cos(math.pi * i * x), torch.cos(math.pi * j * x))
        rows += [function[..., None] * torch.eye(3)[colour] for colour in range(3)]
    basis = torch.stack(rows).flatten(1)[:width]
    missing = torch.zeros(width - len(basis), basis.shape[1])  # a patch with fewer pixels than the width
    return torch.cat([basis, missing])
