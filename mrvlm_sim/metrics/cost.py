"""What an arm costs and what it sees: FLOPs by stage, parameters, acuity; closed-form, without running anything.

FLOPs are 2 per multiply-add of the matrix products: linear layers and the two products of attention. Norms,
softmax, activations, embeddings' look-ups and sums are left out, as in the ViT papers and in torch's own counter,
which `counted_flops` runs as a check.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import pi, radians, tan

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mrvlm_sim.models import NetworkConfig, PolicyNetwork, encode_words
from mrvlm_sim.models.fusion import BOX_FEATURES
from mrvlm_sim.models.heads import KEY_SIZE
from mrvlm_sim.vision import Pyramid

VIT_B = {"width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4}  # Dosovitskiy et al., 2021, table 1


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one forward of one observation, by stage."""

    patch_embedding: int
    context: int  # proprioception and instruction
    fusion: int
    trunk: int
    heads: int  # both: the landmarks, too, are computed in every forward

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def per_control_step(self, execute: int) -> float:
        """FLOPs of one control step, if `execute` actions of each chunk are carried out."""
        if execute < 1:
            raise ValueError(f"execute must be at least 1 action, not {execute}")
        return self.total / execute


def flops(pyramids: Mapping[str, Pyramid], config: NetworkConfig) -> FlopCount:
    """FLOPs of `PolicyNetwork(pyramids, config)` for one observation."""
    full = sum(p.grids[0] ** 2 for p in pyramids.values())
    cutouts = sum(p.tokens for p in pyramids.values()) - full
    context = 1 + config.instruction_tokens
    in_trunk = context + full + (0 if config.fusion == "cross" else cutouts)
    return FlopCount(
        patch_embedding=sum(linear_flops(p.tokens, 3 * p.patch**2, config.width) for p in pyramids.values()),
        context=_context_flops(config),
        fusion=_fusion_flops(context, full, cutouts, config),
        trunk=config.depth * _block_flops(in_trunk, config),
        heads=_head_flops(in_trunk, config),
    )


def linear_flops(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of a linear layer on `rows` tokens (the bias is not counted)."""
    return 2 * rows * inputs * outputs


def attention_flops(tokens_q: int, tokens_kv: int, width: int) -> int:
    """FLOPs of the two products of attention, QK^T and AV, over all heads; without the projections."""
    return 2 * linear_flops(tokens_q, width, tokens_kv)


def counted_flops(network: PolicyNetwork, pyramids: Mapping[str, Pyramid]) -> int:
    """FLOPs that torch's own counter sees in one forward of one observation: the check of `flops`."""
    # torch 2.13 counts 0 for attention's CPU kernel unless its formula is registered.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={kernel: _sdpa_flops})
    with torch.no_grad(), counter:
        network(*_blank_observation(network, pyramids))
    return counter.get_total_flops()


def parameters(network: nn.Module) -> int:
    """Number of trainable values, the auxiliary head's included."""
    return sum(p.numel() for p in network.parameters())


@dataclass(frozen=True)
class Acuity:
    """Pixels and tokens per degree of visual angle, at the optical axis and at the middle of the frame's edge."""

    centre_pixels: float
    edge_pixels: float
    centre_tokens: float
    edge_tokens: float


def acuity(pyramid: Pyramid, fov_degrees: float) -> Acuity:
    """Acuity without jitter of a pinhole camera with this field of view (edge to edge, in degrees).

    The image of an angle t off the axis lies at x = f tan(t), so dx/dt = f / cos(t)^2: a uniform grid is finer at
    its edge than at its centre. Each point counts with the finest level whose nominal box covers it.

    Raises:
        ValueError: the field of view is not between 0 and 180 degrees.
    """
    if not 0 < fov_degrees < 180:
        raise ValueError(f"fov_degrees must be between 0 and 180, not {fov_degrees}")
    centre, edge = _pixels_per_degree(pyramid, fov_degrees, 0.0), _pixels_per_degree(pyramid, fov_degrees, 1.0)
    return Acuity(centre, edge, centre / pyramid.patch, edge / pyramid.patch)


def seed_size(pyramid: Pyramid) -> Pyramid:
    """The same arm on a sensor twice as wide: shipped cards use 512 pixels, the idea was stated for 1024.

    An arm that keeps the sensor's full resolution (finest factor 1) keeps doing so, with patches twice as wide;
    any other keeps its views.
    """
    patch = pyramid.patch * (2 if min(pyramid.factors) == 1 else 1)
    return Pyramid.model_validate(pyramid.model_dump() | {"frame_size": 2 * pyramid.frame_size, "patch": patch})


def seed_config(config: NetworkConfig) -> NetworkConfig:
    """The same network at the size of ViT-B."""
    return NetworkConfig.model_validate(config.model_dump() | VIT_B)


def _context_flops(config: NetworkConfig) -> int:
    width = config.width
    instruction = _mlp_flops(1, width, 2 * width, config.instruction_tokens * width)
    return linear_flops(1, config.proprio_size, width) + instruction


def _fusion_flops(context: int, full: int, cutouts: int, config: NetworkConfig) -> int:
    if config.fusion == "sequence":
        return 0
    boxes = linear_flops(full + cutouts, BOX_FEATURES, config.width)
    if config.fusion == "embedded":
        return boxes
    stream = context + full
    cross_block = _attention_layer_flops(stream, cutouts, config.width) + _block_flops(stream, config)
    return boxes + _block_flops(cutouts, config) + config.fusion_depth * cross_block


def _head_flops(tokens: int, config: NetworkConfig) -> int:
    width, landmarks, hidden = config.width, config.landmarks, 2 * config.width
    queries = linear_flops(1, width, landmarks * KEY_SIZE)
    keys_and_votes = linear_flops(tokens, width, KEY_SIZE + 3 * landmarks)
    weighing = linear_flops(landmarks, KEY_SIZE, tokens) + linear_flops(landmarks, tokens, 3)
    seen = width + 3 * landmarks + config.proprio_size
    actions = _mlp_flops(1, seen, hidden, hidden) + linear_flops(1, hidden, config.chunk * config.action_size)
    return queries + keys_and_votes + weighing + actions


def _block_flops(tokens: int, config: NetworkConfig) -> int:
    mlp = _mlp_flops(tokens, config.width, config.mlp_ratio * config.width, config.width)
    return _attention_layer_flops(tokens, tokens, config.width) + mlp


def _attention_layer_flops(tokens_q: int, tokens_kv: int, width: int) -> int:
    query_and_output = 2 * linear_flops(tokens_q, width, width)
    key_and_value = linear_flops(tokens_kv, width, 2 * width)
    return query_and_output + key_and_value + attention_flops(tokens_q, tokens_kv, width)


def _mlp_flops(rows: int, inputs: int, hidden: int, outputs: int) -> int:
    return linear_flops(rows, inputs, hidden) + linear_flops(rows, hidden, outputs)


def _sdpa_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, out_shape: object = None, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


def _blank_observation(
    network: PolicyNetwork, pyramids: Mapping[str, Pyramid]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """One grey observation, as the arguments of the network's forward."""
    like = network.proprio_mean
    tokens = {name: like.new_full((1, p.tokens, 3 * p.patch**2), 0.5) for name, p in pyramids.items()}
    boxes = {name: torch.from_numpy(p.token_boxes(p.centred())[None]).to(like) for name, p in pyramids.items()}
    return tokens, boxes, like.new_zeros(1, network.config.proprio_size), encode_words([""]).to(like.device)


def _pixels_per_degree(pyramid: Pyramid, fov_degrees: float, u: float) -> float:
    """View pixels per degree at `u` frame half-widths to the right of the centre; 0 where no level shows anything."""
    slope = tan(radians(fov_degrees) / 2)
    focal_length = pyramid.frame_size / 2 / slope
    sensor_pixels = focal_length * (1 + (u * slope) ** 2) * pi / 180
    covering = np.float64(pyramid.zoom) ** -np.arange(pyramid.levels) >= u
    shown = [
        factor for factor, covers, grid in zip(pyramid.factors, covering, pyramid.grids, strict=True) if covers and grid
    ]
    return sensor_pixels / min(shown) if shown else 0.0
