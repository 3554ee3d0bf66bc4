"""The transformer blocks that every arm shares (pre-norm ViT: Dosovitskiy et al., 2021)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of `queries` (B, M, D) over `context` (B, N, D); self-attention if they are one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        q = rearrange(self.query(queries), "b m (h d) -> b h m d", h=self.heads)
        k, v = rearrange(self.key_value(context), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        if q.device.type == "cpu":  # float32 attention is twice as fast as bfloat16 there
            q, k, v = q.float(), k.float(), v.float()
        with torch.autocast(q.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.output(rearrange(mixed, "b h m d -> b m (h d)"))


class MLP(nn.Sequential):
    """Two linear layers; the output is as wide as the input unless said otherwise."""

    def __init__(self, width: int, hidden: int, output: int | None = None) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, output or width))


class Block(nn.Module):
    """Self-attention and MLP on x (B, N, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = MLP(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed)
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Cross-attention of x (B, M, D) over a context (B, N, D), then a block of its own."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.block = Block(width, heads, mlp_ratio)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x), self.context_norm(context))
        return self.block(x)
