"""The instruction as tokens: hashed words, pooled by a few learned queries, so that its length costs next to nothing.

Words are hashed into buckets (Weinberger et al., "Feature hashing for large scale multitask learning", 2009), so
any UTF-8 text is accepted and no vocabulary has to be shipped.
"""

import re
import unicodedata
from zlib import crc32

import torch
from torch import Tensor, nn

from mrvlm_sim.models.vit import MLP

BUCKETS = 2048
MAX_WORDS = 64  # longer instructions are read up to here


def word_buckets(instruction: str) -> list[int]:
    """Bucket of each word, 1 to BUCKETS - 1; 0 stands for "no word"."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", instruction).casefold())
    return [crc32(word.encode()) % (BUCKETS - 1) + 1 for word in words[:MAX_WORDS]]


def encode_words(instructions: list[str]) -> Tensor:
    """Buckets of a batch of instructions, int64 (B, MAX_WORDS), padded with 0."""
    rows = [word_buckets(text) for text in instructions]
    return torch.tensor([row + [0] * (MAX_WORDS - len(row)) for row in rows], dtype=torch.int64)


class InstructionEncoder(nn.Module):
    """Buckets (B, MAX_WORDS) to tokens (B, tokens, D)."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.words = nn.Embedding(BUCKETS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        self.mlp = MLP(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(0.02 * torch.randn(tokens, width))
        nn.init.normal_(self.words.weight, std=0.5)

    def forward(self, buckets: Tensor) -> Tensor:
        x = self.words(buckets) + self.positions
        x = self.norm(x + self.mlp(x))
        scores = (x @ self.queries.T).transpose(-1, -2)
        scores = scores.masked_fill((buckets == 0)[:, None, :], -1e4)
        return scores.softmax(dim=-1).to(x.dtype) @ x
