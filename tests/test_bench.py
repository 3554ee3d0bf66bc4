"""The benchmark measures what it says; how fast things are is not a test's business."""

import re

import pytest

from mrvlm_sim.evaluation.bench import measurements

pytestmark = pytest.mark.slow


def test_every_measurement_gives_figures() -> None:
    titles = set()
    for title, measure in measurements(quick=True):
        table = measure()
        titles.add(title.split(",")[0].split()[0])
        figures = [str(value) for value in table.iloc[:, -1]]
        assert len(figures) >= 1
        assert all(re.search(r"\d", figure) and "nan" not in figure for figure in figures), table.to_string()
    assert titles == {
        "rendering", "act", "training", "attacks", "episodes", "environments", "reinforcement", "store", "remote",
    }  # fmt: skip
