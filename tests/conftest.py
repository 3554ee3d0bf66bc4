"""What several test modules share: one environment, quick settings, random valid pyramids."""

from collections.abc import Iterator
from math import lcm
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from tiny import save_tiny

from mrvlm_sim.agents.trained import TrainedPolicy, load_trained
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.tasks import make_env
from mrvlm_sim.training.demos import Demonstrations, record
from mrvlm_sim.vision import Jitter, Pyramid

BRIEF_STEPS = 10

torch.set_num_threads(1)
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


@pytest.fixture(scope="module")
def env() -> Iterator[ManipulationEnv]:
    environment = make_env("pick_place")
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def brief_env() -> Iterator[ManipulationEnv]:
    """An environment whose episodes end after BRIEF_STEPS."""
    environment = make_env("pick_place")
    environment.card = environment.card.model_copy(update={"max_steps": BRIEF_STEPS})
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    return record("pick_place", 3, seed=1)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


@pytest.fixture
def tiny(tiny_folder: Path) -> TrainedPolicy:
    return load_trained(tiny_folder)


@st.composite
def jitters(draw: st.DrawFn) -> Jitter:
    amplitude = st.floats(0, 1)
    return Jitter(
        tremor=draw(amplitude), drift=draw(amplitude), drift_step=draw(amplitude), saccade=draw(amplitude),
        saccade_frames=draw(st.integers(1, 6)),
    )  # fmt: skip


@st.composite
def pyramids(draw: st.DrawFn, max_frame: int = 900, gaps: bool = False) -> Pyramid:
    """Any valid pyramid of up to three levels whose frame is not larger than `max_frame`; with `gaps`, some levels may
    have no tokens."""
    zoom, patch = draw(st.sampled_from([2, 3])), draw(st.integers(1, 5))
    grids = draw(st.lists(st.integers(0 if gaps else 1, 4), min_size=1, max_size=3).filter(any))
    least = lcm(*(zoom**level * (grid * patch or 1) for level, grid in enumerate(grids)))
    if least > max_frame:
        grids, least = [1, 1, 1], zoom**2 * patch
    frame = least * draw(st.integers(1, max(1, min(4, max_frame // least))))
    return Pyramid(frame_size=frame, patch=patch, grids=tuple(grids), zoom=zoom, jitter=draw(jitters()))
