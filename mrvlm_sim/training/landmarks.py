"""What teaches a network where things are: how far off it finds them, and which of its tokens show them."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.models.heads import LANDMARK_SCALE
from mrvlm_sim.models.network import Perception

COUNTING = 0.2  # weight of the cross-entropy beside the votes' errors


def landmark_error(predicted: Tensor, true: Tensor) -> Tensor:
    """Smooth L1 over the landmarks (..., 3) that exist, in units of LANDMARK_SCALE."""
    exists = ~true.isnan()
    return F.smooth_l1_loss(predicted[exists] / LANDMARK_SCALE, true[exists] / LANDMARK_SCALE, beta=0.1)


def voting_error(network: PolicyNetwork, seen: Perception, true: Tensor, shown: Mapping[str, Tensor]) -> Tensor:
    """How badly the landmarks' tokens vote and how little their votes count, of landmarks (B, K, 3).

    `shown` says for every camera which of its tokens show which landmark: bool (B, K, N). As for the pixels of an
    object in PVNet (Peng et al., 2019): their votes are to be right, one by one, and theirs are to count; the latter is
    the cross-entropy of the votes' weights. A landmark that is out of sight counts for nothing.
    """
    tokens = torch.cat([shown[camera] for camera in network.cameras], dim=2)[..., network.fusion.stream]
    voting = F.pad(tokens, (seen.scores.shape[2] - tokens.shape[2], 0))  # the context comes first, and shows nothing
    visible = voting.any(dim=-1)
    if not visible.any():
        return seen.scores.sum() * 0
    weights = seen.scores[visible].log_softmax(dim=-1).masked_fill(~voting[visible], float("-inf"))
    votes = landmark_error(seen.votes[voting], true[:, :, None].expand_as(seen.votes)[voting])
    return votes - COUNTING * weights.logsumexp(dim=-1).mean()
