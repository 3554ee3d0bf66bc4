"""A reader of marks: the encoder of an arm, and a small head that is told where to look and says what is there."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrvlm_sim.models.config import NetworkConfig
from mrvlm_sim.models.fusion import BOX_FEATURES, box_features
from mrvlm_sim.models.instruction import encode_words
from mrvlm_sim.models.network import PolicyNetwork
from mrvlm_sim.vision import Pyramid

FARTHEST = 4.0  # half-widths of a token at which a place counts as far from it


class MarkReader(PolicyNetwork):
    """`read` gives scores (B, places, marks) from the same observations as a policy's, but no instruction.

    The place of every plate is given, as in experiments on cued acuity: what is measured is what the tokens hold of a
    mark, not whether it is found. Every token of the trunk that has a box says what it knows of a place, given where
    the place lies in its box; those nearest to it, in units of their own size, are heard most, and the levels learn
    their share. The policy's own heads are not used.
    """

    def __init__(self, pyramids: Mapping[str, Pyramid], config: NetworkConfig, marks: int) -> None:
        super().__init__(pyramids, config)
        width = config.width
        self.token, self.offset = nn.Linear(width, width), nn.Linear(BOX_FEATURES, width)
        self.weight, self.mark = nn.Linear(width, 1), nn.Linear(width, marks)
        self.nearness = nn.Parameter(torch.ones(()))
        self.level = nn.Parameter(torch.zeros(max(pyramid.levels for pyramid in pyramids.values())))
        nn.init.zeros_(self.weight.weight)

    def read(
        self, tokens: Mapping[str, Tensor], boxes: Mapping[str, Tensor], proprio: Tensor, places: Tensor
    ) -> Tensor:
        """Scores (B, places, marks) in float32 for places (B, places, 2) = u, v in the frame."""
        words = encode_words([""]).to(proprio.device).expand(len(proprio), -1)
        sequence, context = self.encode(tokens, boxes, proprio, words)
        placed = torch.cat([boxes[camera] for camera in self.cameras], 1)[:, self.fusion.stream]
        with torch.autocast(sequence.device.type, enabled=False):
            return self._listen(self.norm(sequence[:, context.shape[1] :].float()), placed, places)

    def _listen(self, tokens: Tensor, boxes: Tensor, places: Tensor) -> Tensor:
        size = boxes[:, None, :, 2:3]
        offsets = ((places[:, :, None] - boxes[:, None, :, :2]) / size).clamp(-FARTHEST, FARTHEST)
        features = box_features(torch.cat([offsets, size.expand_as(offsets[..., :1])], dim=-1))
        known = F.gelu(self.token(tokens)[:, None] + self.offset(features), approximate="tanh")  # (B, places, M, D)
        far = self.nearness * offsets.square().sum(-1)
        weights = (self.weight(known).squeeze(-1) - far + self.level[boxes[:, None, :, 3].long()]).softmax(dim=-1)
        return self.mark((weights[..., None] * known).sum(dim=2))
