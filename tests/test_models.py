"""The one network of all arms, under its three fusions."""

from itertools import pairwise, product
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrvlm_sim.models import NetworkConfig, PolicyNetwork, encode_words
from mrvlm_sim.models.instruction import MAX_PIECES, buckets
from mrvlm_sim.tasks.pick_place import COLOURS
from mrvlm_sim.vision import Jitter, Pyramid

FUSIONS = get_args(NetworkConfig.model_fields["fusion"].annotation)
EVEN = Pyramid(frame_size=64, patch=4, grids=(4, 4, 4), jitter=Jitter(tremor=0.2))
UNEVEN = Pyramid(frame_size=64, patch=4, grids=(8, 4, 2), jitter=Jitter(tremor=0.2))
CHUNK, ACTIONS, PROPRIO, LANDMARKS = 3, 5, 7, 2
INSTRUCTIONS = [f"put the {thing} cube on the {target} pad" for thing, target in product(COLOURS, COLOURS)]

Inputs = tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]


def network(fusion: str, cameras: dict[str, Pyramid] | None = None) -> PolicyNetwork:
    torch.manual_seed(0)
    sizes = {"chunk": CHUNK, "action_size": ACTIONS, "proprio_size": PROPRIO, "landmarks": LANDMARKS}
    config = NetworkConfig(fusion=fusion, width=32, depth=2, heads=4, **sizes)
    return PolicyNetwork(cameras or {"wrist": EVEN}, config)


def inputs(batch: int = 2, cameras: dict[str, Pyramid] | None = None, instruction: str = INSTRUCTIONS[1]) -> Inputs:
    rng, tokens, boxes = np.random.default_rng(0), {}, {}
    for camera, pyramid in (cameras or {"wrist": EVEN}).items():
        values = rng.random((batch, pyramid.tokens, pyramid.patch**2 * 3), dtype=np.float32)
        origins = pyramid.place(pyramid.jitter.stationary(rng, (batch, pyramid.levels, 2)))
        tokens[camera], boxes[camera] = torch.from_numpy(values), torch.from_numpy(pyramid.token_boxes(origins))
    proprio = torch.from_numpy(rng.normal(size=(batch, PROPRIO)).astype(np.float32))
    return tokens, boxes, proprio, encode_words([instruction] * batch)


def differs(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return any((a - b).abs().max() > 1e-6 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("fusion", FUSIONS)
class TestEveryFusion:
    @pytest.mark.parametrize(
        "cameras", [{"wrist": EVEN}, {"wrist": UNEVEN}, {"wrist": EVEN, "scene": UNEVEN}], ids=["even", "uneven", "two"]
    )
    def test_shapes(self, fusion: str, cameras: dict[str, Pyramid]) -> None:
        actions, landmarks = network(fusion, cameras)(*inputs(2, cameras))
        assert actions.shape == (2, CHUNK, ACTIONS)
        assert landmarks.shape == (2, LANDMARKS, 3)
        assert actions.isfinite().all()
        assert landmarks.isfinite().all()

    def test_samples_of_a_batch_do_not_mix(self, fusion: str) -> None:
        net, (tokens, boxes, proprio, words) = network(fusion), inputs(3)
        words = encode_words([*INSTRUCTIONS[:2], "a much longer instruction than the other two of this batch"])
        together = net(tokens, boxes, proprio, words)
        for i in range(3):
            one = slice(i, i + 1)
            alone = net({"wrist": tokens["wrist"][one]}, {"wrist": boxes["wrist"][one]}, proprio[one], words[one])
            for ours, theirs in zip(alone, together, strict=True):
                assert (ours[0] - theirs[i]).abs().max() < 1e-4

    def test_every_input_matters(self, fusion: str) -> None:
        net, (tokens, boxes, proprio, words) = network(fusion), inputs()
        plain = net(tokens, boxes, proprio, words)
        for level in range(EVEN.levels):
            changed = tokens["wrist"].clone()
            changed[:, EVEN.token_levels == level] += 0.1
            assert differs(plain, net({"wrist": changed}, boxes, proprio, words)), f"level {level}"
        for joint in range(PROPRIO):
            changed = proprio.clone()
            changed[:, joint] += 1
            assert differs(plain, net(tokens, boxes, changed, words)), f"proprio {joint}"

    def test_the_order_of_patches_matters(self, fusion: str) -> None:
        net, (tokens, boxes, proprio, words) = network(fusion), inputs()
        swapped = tokens["wrist"].clone()
        swapped[:, [17, 18]] = swapped[:, [18, 17]]
        assert differs(net(tokens, boxes, proprio, words), net({"wrist": swapped}, boxes, proprio, words))

    def test_only_sequence_ignores_the_boxes(self, fusion: str) -> None:
        net, (tokens, boxes, proprio, words) = network(fusion), inputs()
        plain = net(tokens, boxes, proprio, words)
        for level in range(1, EVEN.levels):
            moved = boxes["wrist"].clone()
            moved[:, EVEN.token_levels == level, :2] += 0.05
            assert differs(plain, net(tokens, {"wrist": moved}, proprio, words)) is (fusion != "sequence")

    def test_it_reads_the_instruction(self, fusion: str) -> None:
        net = network(fusion)
        outputs = {text: net(*inputs(1, instruction=text)) for text in INSTRUCTIONS}
        one, swapped = "put the red cube on the blue pad", "put the blue cube on the red pad"
        assert differs(outputs[one], outputs[swapped])
        distinct = {output[0].detach().numpy().tobytes() for output in outputs.values()}
        assert len(distinct) == len(INSTRUCTIONS)

    @settings(max_examples=15)
    @given(text=st.text(max_size=400))
    def test_any_text_is_an_instruction(self, fusion: str, text: str) -> None:
        actions, landmarks = network(fusion)(*inputs(1, instruction=text))
        assert actions.isfinite().all()
        assert landmarks.isfinite().all()

    @pytest.mark.parametrize("text", ["", "  \n", "🤖?!", "word " * 500])
    def test_odd_instructions(self, fusion: str, text: str) -> None:
        assert network(fusion)(*inputs(1, instruction=text))[0].isfinite().all()

    def test_gradient_reaches_every_parameter(self, fusion: str) -> None:
        net = network(fusion)
        actions, landmarks = net(*inputs(4))
        (actions.square().mean() + landmarks.square().mean()).backward()
        unreached = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
        assert unreached == []

    def test_gradient_reaches_every_pixel(self, fusion: str) -> None:
        tokens, *rest = inputs(1)
        tokens["wrist"].requires_grad_()
        network(fusion)(tokens, *rest)[0].square().sum().backward()
        assert tokens["wrist"].grad is not None
        assert (tokens["wrist"].grad != 0).float().mean() > 0.99

    def test_proprioception_is_normalised_inside(self, fusion: str) -> None:
        net, (tokens, boxes, proprio, words) = network(fusion), inputs()
        plain = net(tokens, boxes, proprio, words)
        net.proprio_mean.fill_(0.4)
        net.proprio_std.fill_(3.0)
        assert not differs(plain, net(tokens, boxes, 3.0 * proprio + 0.4, words))
        assert {"proprio_mean", "proprio_std"} <= net.state_dict().keys()


def test_a_uniform_pyramid_is_a_plain_vit() -> None:
    cameras = {"wrist": Pyramid(frame_size=64, patch=8, grids=(8,))}
    actions, _ = network("sequence", cameras)(*inputs(2, cameras))
    assert actions.shape == (2, CHUNK, ACTIONS)


def test_cross_keeps_cutouts_out_of_the_trunk() -> None:
    for fusion, expected in (("sequence", 48), ("embedded", 48), ("cross", 16)):
        net, lengths = network(fusion), []
        net.trunk.register_forward_pre_hook(lambda _, args, seen=lengths: seen.append(args[0].shape[1]))
        tokens, boxes, proprio, words = inputs()
        net(tokens, boxes, proprio, words)
        assert lengths == [net.embed_context(proprio, words).shape[1] + expected]


class TestWords:
    def test_shipped_words_and_pairs_have_buckets_of_their_own(self) -> None:
        pieces = {}
        for text in INSTRUCTIONS:
            words = text.split()
            names = [*words, *(f"{first} {second}" for first, second in pairwise(words))]
            pieces |= dict(zip(names, buckets(text), strict=True))
        assert len(pieces) > 16
        assert len(set(pieces.values())) == len(pieces)

    def test_case_and_punctuation_do_not_matter(self) -> None:
        assert buckets("Put the RED cube, on the pad!") == buckets("put the red cube on the pad")

    @given(st.text())
    def test_any_text_has_a_row_of_its_own(self, text: str) -> None:
        (row,) = encode_words([text])
        assert row.shape == (MAX_PIECES,)
        assert row.min() >= 0
        assert (row.diff().ne(0) & row[1:].ne(0) & row[:-1].eq(0)).sum() == 0  # padding comes last
