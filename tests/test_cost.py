"""The closed-form cost against torch's own counter, published figures, and the numbers that the idea promises."""

from math import cos, radians

import pytest
import torch

from mrvlm_sim import paths
from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.cards import read_card
from mrvlm_sim.metrics.cost import (
    VIT_B,
    FlopCount,
    acuity,
    attention_flops,
    counted_flops,
    flops,
    parameters,
    seed_config,
    seed_size,
)
from mrvlm_sim.models import NetworkConfig, PolicyNetwork
from mrvlm_sim.vision import Pyramid

CARDS = {name: read_card(path, PolicyCard) for name, path in paths.cards_in("policies", "policy.toml").items()}
FOV = 60.0
SMALL = {"width": 32, "depth": 2, "heads": 2, "chunk": 3, "action_size": 5, "proprio_size": 7, "landmarks": 2}


def seed(name: str) -> Pyramid:
    return seed_size(CARDS[name].cameras["wrist"])


def config(fusion: str, **sizes: int) -> NetworkConfig:
    return NetworkConfig.model_validate({"fusion": fusion, **SMALL, **sizes})


@pytest.mark.parametrize("name", CARDS)
def test_closed_form_agrees_with_the_counter_for_every_card(name: str) -> None:
    card = CARDS[name]
    torch.set_num_threads(1)
    network = PolicyNetwork(card.cameras, card.network)
    counted = counted_flops(network, card.cameras)
    assert flops(card.cameras, card.network).total == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("fusion", ["sequence", "embedded", "cross"])
def test_closed_form_agrees_for_two_cameras_and_uneven_levels(fusion: str) -> None:
    cameras = {
        "wrist": Pyramid(frame_size=64, patch=8, grids=(4, 2, 2)),
        "scene": Pyramid(frame_size=48, patch=12, grids=(4,)),
    }
    sizes = config(fusion, mlp_ratio=3, fusion_depth=3, instruction_tokens=2)
    network = PolicyNetwork(cameras, sizes)
    assert flops(cameras, sizes).total == pytest.approx(counted_flops(network, cameras), rel=0.01)


def test_the_counter_sees_attention() -> None:
    """On CPUs torch counts 0 for it unless told otherwise; here it is more than half of all FLOPs."""
    cameras = {"wrist": Pyramid(frame_size=64, patch=2, grids=(32,))}
    sizes = config("sequence")
    counted = counted_flops(PolicyNetwork(cameras, sizes), cameras)
    assert sizes.depth * attention_flops(1024 + 6, 1024 + 6, sizes.width) > 0.5 * counted
    assert flops(cameras, sizes).total == pytest.approx(counted, rel=0.01)


def test_trunk_is_vit_b_of_the_literature() -> None:
    """ViT-B/16 at 224 pixels: 17.6 G multiply-adds (Touvron et al., 2021); three more tokens of context here."""
    cameras = {"wrist": Pyramid(frame_size=224, patch=16, grids=(14,))}
    cost = flops(cameras, config("sequence", **VIT_B, instruction_tokens=1))
    assert cost.patch_embedding + cost.trunk == pytest.approx(2 * 17.6e9, rel=0.02)


def test_total_is_the_sum_of_its_stages_and_chunks_share_it() -> None:
    cost = FlopCount(patch_embedding=1, context=2, fusion=3, trunk=4, heads=5)
    assert cost.total == 15
    assert cost.per_control_step(execute=4) == 15 / 4
    with pytest.raises(ValueError, match="not 0"):
        cost.per_control_step(execute=0)


def test_doubling_the_tokens_quadruples_attention() -> None:
    assert attention_flops(128, 128, 64) == 4 * attention_flops(64, 64, 64)
    assert attention_flops(128, 64, 64) == 2 * attention_flops(64, 64, 64)


def test_cross_keeps_the_cutouts_out_of_the_trunk() -> None:
    cross, embedded = (CARDS[f"pyramid-48-{fusion}"] for fusion in ("cross", "embedded"))
    cost, other = flops(cross.cameras, cross.network), flops(embedded.cameras, embedded.network)
    full_view = {"wrist": Pyramid(frame_size=512, patch=32, grids=(4,))}
    assert cost.trunk == flops(full_view, embedded.network).trunk < other.trunk
    assert cost.fusion > other.fusion
    assert (cost.patch_embedding, cost.context) == (other.patch_embedding, other.context)
    assert cost.heads < other.heads  # fewer tokens vote


def test_parameters_are_counted_one_by_one() -> None:
    assert parameters(torch.nn.Linear(3, 5)) == 3 * 5 + 5


def test_the_seed_numbers_of_tokens() -> None:
    names = "pyramid-48-sequence", "pyramid-192-embedded", "uniform-256", "uniform-256-hires", "uniform-49"
    assert [seed(name).tokens for name in names] == [48, 192, 256, 256, 49]


def test_the_seed_sizes_of_sensor_and_views() -> None:
    sizes = {name: (seed(name).frame_size, seed(name).patch, set(seed(name).view_sizes)) for name in CARDS}
    assert sizes["uniform-256"] == (1024, 16, {256})
    assert sizes["uniform-256-hires"] == (1024, 64, {1024})
    assert sizes["uniform-49"] == (1008, 36, {252})
    assert sizes["pyramid-192-embedded"] == (1024, 32, {256})
    for fusion in ("sequence", "embedded", "cross"):
        assert sizes[f"pyramid-48-{fusion}"] == (1024, 64, {256})


def test_the_seed_size_changes_nothing_else() -> None:
    shipped = CARDS["pyramid-48-cross"].cameras["wrist"]
    assert seed_size(shipped).jitter == shipped.jitter
    assert seed_size(shipped).grids == shipped.grids
    network = CARDS["pyramid-48-cross"].network
    assert seed_config(network).model_dump() == network.model_dump() | VIT_B


def test_the_seed_numbers_of_acuity() -> None:
    """256-pixel views of a 1024-pixel sensor: the centre as fine as the whole frame, its tokens as dense as stated."""
    small, double = acuity(seed("pyramid-48-cross"), FOV), acuity(seed("pyramid-192-embedded"), FOV)
    standard, hires = acuity(seed("uniform-256"), FOV), acuity(seed("uniform-256-hires"), FOV)
    assert small.centre_pixels == pytest.approx(hires.centre_pixels)
    assert small.centre_pixels == pytest.approx(4 * standard.centre_pixels)
    assert small.centre_tokens == pytest.approx(standard.centre_tokens)
    assert double.centre_tokens == pytest.approx(2 * standard.centre_tokens)
    assert small.edge_pixels == pytest.approx(standard.edge_pixels)
    assert small.edge_tokens == pytest.approx(standard.edge_tokens / 4)


def test_a_flat_sensor_is_finer_at_its_edge() -> None:
    uniform = acuity(Pyramid(frame_size=100, patch=10, grids=(10,)), 90.0)
    assert uniform.centre_pixels == pytest.approx(50 * radians(1))
    assert uniform.edge_pixels == pytest.approx(uniform.centre_pixels / cos(radians(45)) ** 2)
    assert uniform.centre_tokens == pytest.approx(uniform.centre_pixels / 10)


def test_pixels_per_degree_add_up_to_the_frame() -> None:
    """Over a narrow field of view, density times angle is the number of pixels."""
    uniform = acuity(Pyramid(frame_size=100, patch=10, grids=(10,)), 1.0)
    assert (uniform.centre_pixels, uniform.edge_pixels) == pytest.approx((100, 100), rel=1e-3)


@pytest.mark.parametrize("fov", [0.0, 180.0, -60.0, float("nan")])
def test_acuity_refuses_what_is_no_field_of_view(fov: float) -> None:
    with pytest.raises(ValueError, match=f"not {fov}"):
        acuity(seed("uniform-256"), fov)
