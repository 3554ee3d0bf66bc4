"""Sizes of a network, as they stand on a policy's card."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mrvlm_sim.cards import Card

PositiveInt = Annotated[int, Field(ge=1)]


class NetworkConfig(Card):
    """A ViT with one of three fusions and an action-chunk head."""

    later = frozenset({"squashed"})

    fusion: Literal["sequence", "embedded", "cross"]
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    mlp_ratio: PositiveInt = 4
    fusion_depth: PositiveInt = 2  # cross-attention blocks; only the `cross` fusion has them
    instruction_tokens: PositiveInt = 4
    chunk: PositiveInt  # actions predicted at once
    action_size: PositiveInt
    proprio_size: PositiveInt
    landmarks: PositiveInt  # points that the landmark head finds and the action head reads
    squashed: bool = False  # actions by the hyperbolic tangent, as those of SAC are

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, not {self.width} with {self.heads} heads")
        return self
