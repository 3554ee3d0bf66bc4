"""Where in the image attacks bite."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rl import BRIEF
from tiny import PYRAMID, save_tiny
from typer.testing import CliRunner

from mrvlm_sim.agents.registry import arm_card
from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.rings import NORMALISATIONS, RINGS, energy_scale, rings
from mrvlm_sim.metrics.attacks import make_mask

pytestmark = pytest.mark.slow

FOVY = 104.0


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_rings_lie_in_each_other_without_gaps(normalisation: str) -> None:
    found = rings(normalisation, FOVY)
    assert (found[0][0], found[-1][1]) == (0, pytest.approx(1))
    assert all(outer == inner for (_, outer), (inner, _) in pairwise(found))


def test_equal_areas() -> None:
    shares = []
    for inner, outer in rings("sensor pixels", FOVY):
        mask = make_mask(f"ring@{inner:g}-{outer:g}")
        assert mask is not None
        shares.append(mask(512).mean())
    np.testing.assert_allclose(shares, np.pi / 4 / RINGS, rtol=0.01)


def test_equal_solid_angles() -> None:
    slope = np.tan(np.radians(FOVY) / 2)
    angles = [[1 - np.cos(np.arctan(r * slope)) for r in ring] for ring in rings("solid angle", FOVY)]
    spans = [outer - inner for inner, outer in angles]
    np.testing.assert_allclose(spans, np.mean(spans))


def test_energy_is_the_same_everywhere_for_a_uniform_vit_and_scarce_outside_for_a_pyramid() -> None:
    found = rings("energy", FOVY)
    uniform = energy_scale(arm_card("uniform-256")[0].cameras["wrist"], found)
    pyramid = energy_scale(PYRAMID, found)
    np.testing.assert_allclose(uniform, 1, rtol=0.02)
    assert (np.diff(pyramid) >= 0).all()
    assert pyramid[-1] > 1.2 * pyramid[0]
    assert np.mean(pyramid**2) == pytest.approx(1)


def test_the_command(tmp_path: Path) -> None:
    arguments = ["--steps", "1", "--draws", "1", "--looks", "2", "--output", str(tmp_path / "rings")]
    what = ["rings", "--env", BRIEF, "--policy", str(save_tiny(tmp_path / "tiny"))]
    result = CliRunner().invoke(app, [*what, *arguments])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "rings" / "rings.csv")
    assert len(table) == len(NORMALISATIONS) * RINGS
    assert (table["harm"] > 0).all()
    assert (tmp_path / "rings" / "rings.png").read_bytes().startswith(b"\x89PNG")


def test_who_gives_no_gradients_is_refused() -> None:
    result = CliRunner().invoke(app, ["rings", "--env", BRIEF, "--policy", "random"])
    assert isinstance(result.exception, UserError)
    assert "with gradients, which random does not give" in str(result.exception)
