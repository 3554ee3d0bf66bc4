"""The instruction as tokens: hashed words and pairs of words, averaged, so that its length costs next to nothing.

Words and neighbouring pairs are hashed into buckets, as in fastText (Joulin et al., "Bag of tricks for efficient text
classification", 2017): any UTF-8 text is accepted and no vocabulary has to be shipped. The pairs say what belongs
together: "red cube ... blue pad" is not "blue cube ... red pad".
"""

import re
import unicodedata
from itertools import pairwise
from zlib import crc32

import torch
from torch import Tensor, nn

from mrvlm_sim.models.vit import MLP

BUCKETS = 4096
MAX_PIECES = 128  # words and pairs; longer instructions are read up to here


def buckets(instruction: str) -> list[int]:
    """Bucket of each word and of each pair of neighbours, 1 to BUCKETS - 1; 0 stands for "nothing"."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", instruction).casefold())[: MAX_PIECES // 2]
    pieces = [*words, *(f"{first} {second}" for first, second in pairwise(words))]
    return [crc32(piece.encode()) % (BUCKETS - 1) + 1 for piece in pieces]


def encode_words(instructions: list[str]) -> Tensor:
    """Buckets of a batch of instructions, int64 (B, MAX_PIECES), padded with 0."""
    rows = [buckets(text) for text in instructions]
    return torch.tensor([row + [0] * (MAX_PIECES - len(row)) for row in rows], dtype=torch.int64)


class InstructionEncoder(nn.Module):
    """Buckets (B, MAX_PIECES) to tokens (B, tokens, D)."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.pieces = nn.EmbeddingBag(BUCKETS, width, mode="mean", padding_idx=0)
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP(width, 2 * width, tokens * width)

    def forward(self, pieces: Tensor) -> Tensor:
        return self.mlp(self.norm(self.pieces(pieces))).unflatten(1, (self.tokens, -1))
