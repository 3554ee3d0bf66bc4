"""Pyramid, jitter and tokens: properties that hold for every valid pyramid."""

import numpy as np
import pytest
import torch
from conftest import jitters, pyramids
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mrvlm_sim.vision import Jitter, JitterProcess, Pyramid, cut, patchify, quantise, tokenise, unpatchify

SEEDS = st.integers(0, 2**32 - 1)


def random_origins(pyramid: Pyramid, seed: int) -> np.ndarray:
    return pyramid.place(JitterProcess(pyramid.jitter, pyramid.levels, np.random.default_rng(seed)).next())


def random_frame(pyramid: Pyramid, seed: int) -> np.ndarray:
    shape = (pyramid.frame_size, pyramid.frame_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(pyramids(), SEEDS)
def test_cutouts_stay_inside_their_parent(pyramid: Pyramid, seed: int) -> None:
    origins = random_origins(pyramid, seed)
    assert (origins[0] == 0).all()
    for level in range(1, pyramid.levels):
        inside = origins[level] - origins[level - 1]
        assert (inside >= 0).all()
        assert (inside + pyramid.cutout_sizes[level] <= pyramid.cutout_sizes[level - 1]).all()
        assert (inside % pyramid.factors[level] == 0).all()


@given(pyramids())
def test_without_jitter_cutouts_are_centred_to_half_a_view_pixel(pyramid: Pyramid) -> None:
    sizes = np.array(pyramid.cutout_sizes)[:, None]
    off_centre = pyramid.centred() + sizes / 2 - pyramid.frame_size / 2
    assert (np.abs(off_centre) <= np.cumsum(pyramid.factors)[:, None] / 2).all()


@given(pyramids(), SEEDS)
def test_boxes_invert(pyramid: Pyramid, seed: int) -> None:
    origins = random_origins(pyramid, seed)
    boxes = pyramid.boxes(origins)
    assert (pyramid.origins(boxes) == origins).all()
    assert (np.abs(boxes[:, :2]) + boxes[:, 2:] <= 1 + 1e-12).all()
    assert boxes[0] == pytest.approx([0, 0, 1])


@given(pyramids(), SEEDS)
def test_places_a_batch_as_it_places_each(pyramid: Pyramid, seed: int) -> None:
    offsets = pyramid.jitter.stationary(np.random.default_rng(seed), (5, pyramid.levels, 2))
    batch = pyramid.place(offsets)
    assert (batch == np.stack([pyramid.place(one) for one in offsets])).all()
    assert (pyramid.token_boxes(batch)[3] == pyramid.token_boxes(batch[3])).all()


@given(pyramids(), SEEDS)
def test_token_boxes_tile_their_view(pyramid: Pyramid, seed: int) -> None:
    origins = random_origins(pyramid, seed)
    views, tokens = pyramid.boxes(origins), pyramid.token_boxes(origins).astype(np.float64)
    assert tokens.shape == (pyramid.tokens, 4)
    assert (tokens[:, 3] == pyramid.token_levels).all()
    for level, grid in enumerate(pyramid.grids):
        u, v, h = (tokens[pyramid.token_levels == level, i].reshape(grid, grid) for i in range(3))
        for centres, along, middle in ((u, 1, views[level, 0]), (v, 0, views[level, 1])):
            lower, upper = (np.moveaxis(centres + sign * h, along, 0) for sign in (-1, 1))
            assert upper[:-1] == pytest.approx(lower[1:], abs=1e-6)  # neither gap nor overlap
            assert lower[0] == pytest.approx(middle - views[level, 2], abs=1e-6)
            assert upper[-1] == pytest.approx(middle + views[level, 2], abs=1e-6)


@given(pyramids(max_frame=120), SEEDS)
def test_unpatchify_inverts_patchify(pyramid: Pyramid, seed: int) -> None:
    views = [quantise(view) for view in cut(random_frame(pyramid, seed), random_origins(pyramid, seed), pyramid)]
    assert [view.shape for view in views] == [(size, size, 3) for size in pyramid.view_sizes]
    tokens = np.concatenate(patchify(views, pyramid.patch))
    assert tokens.shape == (pyramid.tokens, pyramid.patch**2 * 3)
    for view, again in zip(views, unpatchify(tokens, pyramid), strict=True):
        assert (view == again).all()


def test_a_token_shows_what_its_box_says() -> None:
    pyramid = Pyramid(frame_size=64, patch=4, grids=(4, 4), jitter=Jitter(tremor=1.0))
    frame = np.zeros((64, 64, 3), np.uint8)
    x, y = 37, 21
    frame[y, x] = 255
    origins = pyramid.place(np.array([[0, 0], [0.3, -0.2]]))
    tokens, boxes = tokenise(cut(frame, origins, pyramid), pyramid), pyramid.token_boxes(origins)
    u, v = (2 * x + 1) / 64 - 1, (2 * y + 1) / 64 - 1
    covers = (np.abs(boxes[:, 0] - u) < boxes[:, 2]) & (np.abs(boxes[:, 1] - v) < boxes[:, 2])
    assert covers.sum() == 2
    assert ((tokens > 0).any(axis=1) == covers).all()


@given(pyramids(max_frame=120), SEEDS)
def test_numpy_and_torch_cut_alike(pyramid: Pyramid, seed: int) -> None:
    origins, frame = random_origins(pyramid, seed), random_frame(pyramid, seed)
    real = (frame / 255).astype(np.float32)
    of_bytes, of_floats = cut(frame, origins, pyramid), cut(frame.astype(np.float64), origins, pyramid)
    in_numpy, in_torch = cut(real, origins, pyramid), cut(torch.from_numpy(real), origins, pyramid)
    for integer, mean, array, tensor in zip(of_bytes, of_floats, in_numpy, in_torch, strict=True):
        assert integer == pytest.approx(mean, abs=1e-9)
        assert np.abs(array - tensor.numpy()).max() <= 1e-6


@given(pyramids(max_frame=120), SEEDS)
def test_gradient_reaches_exactly_the_pixels_of_the_cutout(pyramid: Pyramid, seed: int) -> None:
    origins, size = random_origins(pyramid, seed), pyramid.frame_size
    for level, factor in enumerate(pyramid.factors):
        frame = torch.rand(size, size, 3, requires_grad=True)
        cut(frame, origins, pyramid)[level].sum().backward()
        assert frame.grad is not None
        expected, (x, y), width = torch.zeros(size, size, 3), origins[level], pyramid.cutout_sizes[level]
        expected[y : y + width, x : x + width] = 1 / factor**2
        assert torch.allclose(frame.grad, expected, rtol=1e-5)


def test_one_level_without_jitter_sees_the_whole_frame() -> None:
    pyramid = Pyramid(frame_size=60, patch=5, grids=(6,))
    frame = random_frame(pyramid, 0)
    (view,) = cut(frame, pyramid.centred(), pyramid)
    assert view.shape == (30, 30, 3)
    assert view[0, 29] == pytest.approx(frame[:2, 58:].mean(axis=(0, 1)))
    assert view.mean() == pytest.approx(frame.mean())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"frame_size": 250, "patch": 16, "grids": (4,)}, ["level 0", "250", "64"]),
        ({"frame_size": 256, "patch": 16, "grids": (4, 4, 3)}, ["level 2", "64", "48"]),
        ({"frame_size": 64, "patch": 16, "grids": (4, 4)}, ["level 1", "32", "64"]),
        ({"frame_size": 250, "patch": 1, "grids": (1, 1, 1)}, ["level 2", "62.5"]),
    ],
)
def test_impossible_pyramids_are_refused_by_name(values: dict, named: list[str]) -> None:
    with pytest.raises(ValidationError) as refusal:
        Pyramid(**values)
    assert all(word in str(refusal.value) for word in named)


@pytest.mark.parametrize("change", [{"grids": ()}, {"zoom": 1}, {"patch": 0}, {"frame_size": -256}])
def test_values_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        Pyramid(**({"frame_size": 256, "patch": 16, "grids": (4,)} | change))


def sequence(jitter: Jitter, seed: int, frames: int = 30, levels: int = 3) -> np.ndarray:
    process = JitterProcess(jitter, levels, np.random.default_rng(seed))
    return np.stack([process.next() for _ in range(frames)])


@given(jitters(), SEEDS)
def test_jitter_is_bounded_and_named_by_its_seed(jitter: Jitter, seed: int) -> None:
    offsets = sequence(jitter, seed)
    assert np.abs(offsets).max() <= jitter.amplitude + 1e-12
    assert (offsets == sequence(jitter, seed)).all()
    if jitter.tremor + jitter.saccade > 1e-6:
        assert (offsets != sequence(jitter, seed + 1)).any()


@pytest.mark.parametrize(
    "jitter",
    [
        Jitter(tremor=0.4),
        Jitter(drift=0.4, drift_step=0.3),
        Jitter(saccade=0.4, saccade_frames=3),
        Jitter(tremor=0.2, drift=0.3, drift_step=0.3, saccade=0.3, saccade_frames=2),
    ],
)
def test_a_long_run_is_distributed_as_independent_frames(jitter: Jitter) -> None:
    long_run = sequence(jitter, 0, frames=1500, levels=20)
    independent = jitter.stationary(np.random.default_rng(1), (30000, 2))
    expected = (jitter.tremor**2 + jitter.drift**2 + jitter.saccade**2) / 3
    assert long_run.mean() == pytest.approx(0, abs=0.02)
    assert long_run.var() == pytest.approx(expected, rel=0.1)
    assert independent.var() == pytest.approx(expected, rel=0.1)


def test_drift_moves_by_small_steps() -> None:
    offsets = sequence(Jitter(drift=0.5, drift_step=0.05), 0, frames=200)
    assert 0 < np.abs(np.diff(offsets, axis=0)).max() <= 0.05 + 1e-12


@given(st.integers(1, 7), SEEDS)
def test_a_saccade_is_held(frames: int, seed: int) -> None:
    offsets = sequence(Jitter(saccade=0.5, saccade_frames=frames), seed, frames=40)
    jumps = np.flatnonzero((np.diff(offsets, axis=0) != 0).any(axis=(1, 2)))
    assert jumps[0] < frames
    assert (np.diff(jumps) == frames).all()
