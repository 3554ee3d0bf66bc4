"""Attacks found on one policy and tried on another."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.base import DifferentiablePolicy, EncodingPolicy, Origins, device_of
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.vision import Pyramid


class Surrogate:
    """A policy that is attacked in place of one that sees the same cameras, perhaps through frames of another width.

    Its jitter is that of its own eyes: where the levels of the other lie is of no use to it.

    Raises:
        UserError: it gives no gradients, or looks through other cameras.
    """

    def __init__(
        self, policy: object, pyramids: Mapping[str, Pyramid], victim: Mapping[str, Pyramid], name: str
    ) -> None:
        if not isinstance(policy, DifferentiablePolicy):
            raise UserError(f"surrogate {name} gives no gradients to transfer; take an arm with weights")
        if pyramids.keys() != victim.keys():
            theirs, ours = ", ".join(pyramids), ", ".join(victim)
            raise UserError(
                f"surrogate {name} looks through {theirs}, the attacked policy through {ours}; take another"
            )
        self.policy, self.pyramids = policy, dict(pyramids)
        self.device = device_of(policy)

    def action_chunks(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        """See `DifferentiablePolicy`."""
        return self.policy.action_chunks(self._resized(frames), origins, observation)

    def encodings(self, frames: Mapping[str, Tensor], origins: Origins, observation: Observation) -> Tensor:
        """See `EncodingPolicy`."""
        assert isinstance(self.policy, EncodingPolicy)
        return self.policy.encodings(self._resized(frames), origins, observation)

    def _resized(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {camera: resized(frame, self.pyramids[camera].frame_size) for camera, frame in frames.items()}


def resized(frame: Tensor, size: int) -> Tensor:
    """A frame (S, S, 3) as (size, size, 3), bilinearly."""
    if frame.shape[0] == size:
        return frame
    batch = frame.movedim(-1, 0)[None]
    return F.interpolate(batch, (size, size), mode="bilinear", align_corners=False)[0].movedim(0, -1)
