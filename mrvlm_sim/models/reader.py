"""A reader of marks: the encoder of an arm, and a small head that says which mark each plate bears."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mrvlm_sim.models.config import NetworkConfig
from mrvlm_sim.models.heads import KEY_SIZE
from mrvlm_sim.models.instruction import encode_words
from mrvlm_sim.models.network import PolicyNetwork
from mrvlm_sim.vision import Pyramid


class MarkReader(PolicyNetwork):
    """`forward` gives scores (B, plates, marks) from the same observations as a policy's, but no instruction.

    Every plate has a learned query that weighs the trunk's tokens (Jaegle et al., "Perceiver IO", 2022); one linear
    layer reads the mark from their weighted mean. The policy's own heads are not used.
    """

    def __init__(self, pyramids: Mapping[str, Pyramid], config: NetworkConfig, plates: int, marks: int) -> None:
        super().__init__(pyramids, config)
        self.plate = nn.Parameter(torch.randn(plates, KEY_SIZE))
        self.plate_key = nn.Linear(config.width, KEY_SIZE)
        self.mark = nn.Linear(config.width, marks)

    def read(self, tokens: Mapping[str, Tensor], boxes: Mapping[str, Tensor], proprio: Tensor) -> Tensor:
        """Scores (B, plates, marks) in float32."""
        words = encode_words([""]).to(proprio.device).expand(len(proprio), -1)
        sequence, _ = self.encode(tokens, boxes, proprio, words)
        with torch.autocast(sequence.device.type, enabled=False):
            seen = self.norm(sequence.float())
            weights = (self.plate @ self.plate_key(seen).mT / KEY_SIZE**0.5).softmax(dim=-1)
            return self.mark(weights @ seen)
