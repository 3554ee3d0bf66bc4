"""Acuity: the scenes that are read, the readers, and what is made of their choices."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import PYRAMID, save_tiny, tiny_card
from typer.testing import CliRunner

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.cli import app
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.acuity import (
    ECCENTRICITIES,
    Examination,
    Threshold,
    choose,
    described,
    growth_of,
    sensor_pixels,
    surface,
    threshold,
    thresholds,
    trial_cells,
)
from mrvlm_sim.evaluation.acuity_report import beyond, load_readable, write_acuity, write_right
from mrvlm_sim.models.reader import MarkReader
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.tasks.optotypes import MARKS
from mrvlm_sim.tasks.read_mark import Parameters, largest_mark
from mrvlm_sim.training.reading import Lesson, Reading, Scenes, random_cells, reading_scenes

pytestmark = pytest.mark.slow

CELLS = [(3.0, 12.0), (6.0, 30.0), (2.0, 40.0), (3.0, 12.0)]
EYES = {"wrist": PYRAMID}


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return reading_scenes(EYES, CELLS, seed=0, workers=1)


class Oracle(MarkReader):
    """Knows the marks of the scenes, in the order they are asked in; `blind`, it knows none."""

    def __init__(self, scenes: Scenes, blind: bool = False) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("proprio_mean", torch.zeros(1))
        self.marks, self.asked, self.blind = scenes.marks, 0, blind

    def read(self, tokens: dict, boxes: dict, proprio: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        marks = self.marks[self.asked : self.asked + len(proprio)]
        self.asked += len(proprio)
        if self.blind:
            return torch.rand(len(marks), 4, len(MARKS), generator=torch.Generator().manual_seed(self.asked))
        return torch.nn.functional.one_hot(torch.from_numpy(marks), len(MARKS)).float()


def many(scenes: Scenes, times: int) -> Scenes:
    """The same scenes many times over, with other plates named."""
    rng = np.random.default_rng(0)
    views = {c: replace_levels(v, times) for c, v in scenes.views.items()}
    marks, proprio, cells = (np.tile(a, (times, 1)) for a in (scenes.marks, scenes.proprio, scenes.cells))
    places = np.tile(scenes.places, (times, 1, 1))
    return Scenes(views, proprio, marks, places, rng.integers(0, 4, len(marks)), cells)


def replace_levels(views, times: int):  # type: ignore[no-untyped-def]
    levels = [np.tile(level, (times, 1, 1, 1)) for level in views.levels]
    return type(views)(views.pyramid, levels, np.tile(views.places, (times, 1, 1)))


class TestScenes:
    def test_a_scene_depends_on_its_number_and_its_cell_alone(self, scenes: Scenes) -> None:
        fewer = reading_scenes(EYES, CELLS[:2], seed=0, workers=1)
        assert (fewer.marks == scenes.marks[:2]).all()
        for ours, theirs in zip(fewer.views["wrist"].levels, scenes.views["wrist"].levels, strict=True):
            assert (ours == theirs[:2]).all()
        other = reading_scenes(EYES, CELLS[:2], seed=1, workers=1)
        assert (other.proprio != fewer.proprio).any()
        assert (scenes.marks[0] != scenes.marks[3]).any(), "equal cells are different scenes"

    def test_what_it_holds(self, scenes: Scenes) -> None:
        assert scenes.marks.shape == (4, 4)
        assert all(len(set(row)) == 4 for row in scenes.marks.tolist())
        assert (scenes.cells == np.array(CELLS)).all()
        assert [len(level) for level in scenes.views["wrist"].levels] == [4, 4, 4]

    def test_places_are_those_of_the_plates(self, scenes: Scenes) -> None:
        """By the angle to the axis that the cell asks for, and by the picture: plates are the brightest there is."""
        with closing(make_own_env("read_mark")) as env:
            reach = np.tan(np.radians(env.model.camera("wrist").fovy[0]) / 2)
        aside = np.degrees(np.arctan(reach * np.linalg.norm(scenes.places, axis=-1)))
        assert np.allclose(aside, scenes.cells[:, 1:], atol=0.01)
        views = scenes.views["wrist"].levels[0]
        for view, places in zip(views, scenes.places, strict=True):
            columns, rows = np.rint((places + 1) / 2 * view.shape[0] - 0.5).astype(int).T
            around = [view[y - 1 : y + 2, x - 1 : x + 2].max() for x, y in zip(columns, rows, strict=True)]
            assert min(around) > np.median(view) + 40

    def test_the_task_tells_what_it_shows(self) -> None:
        env = make_own_env("read_mark")
        for seed in range(3):
            env.reset(seed=seed)
            assert env.task.words["thing"] in env.instruction
            assert env.task.shown.index(env.task.words["thing"]) == int(env.task._named.removeprefix("plate"))
        env.close()

    def test_random_cells_fit_and_spread(self) -> None:
        cells = np.array(random_cells(300, seed=0))
        for size, place in cells[:50]:
            Parameters(mark_size=size, eccentricity=place, tolerance=0.02, marks=MARKS, start_noise=0.0)
        assert 1 <= cells[:, 0].min() < 1.5
        assert 8 < cells[:, 0].max() <= 10
        assert np.ptp(cells[:, 1]) > 30
        assert random_cells(300, seed=0) == [tuple(cell) for cell in cells.tolist()]

    @pytest.mark.parametrize("place", [10.0, 20.0, 40.0])
    def test_the_largest_mark_is_the_largest(self, place: float) -> None:
        fixed = {"eccentricity": place, "tolerance": 0.02, "marks": MARKS, "start_noise": 0.0}
        largest = min(largest_mark(place), 10.0)
        Parameters(mark_size=largest - 1e-6, **fixed)
        with pytest.raises(ValueError, match="mark_size"):
            Parameters(mark_size=largest + 1e-3, **fixed)

    def test_every_cell_of_the_trials_fits(self) -> None:
        cells = trial_cells(2)
        assert len(cells) == 2 * len(set(cells))
        assert {place for _, place in cells} == set(ECCENTRICITIES)
        assert all(size <= largest_mark(place) for size, place in cells)


@pytest.mark.parametrize("fusion", ["sequence", "embedded", "cross"])
def test_a_reader_reads_where_it_is_told_to(fusion: str, scenes: Scenes) -> None:
    torch.manual_seed(0)
    reader = MarkReader(EYES, tiny_card(fusion=fusion).network, len(MARKS)).eval()
    *seen, places = scenes.look(np.arange(4), np.random.default_rng(0), torch.device("cpu"))
    with torch.no_grad():
        scores, turned = reader.read(*seen, places), reader.read(*seen, places.flip(1))
        changed = reader.read(*seen, places + torch.tensor([[[0.5, 0.0]], *3 * [[[0.0, 0.0]]]]))
    assert scores.shape == (4, 4, len(MARKS))
    torch.testing.assert_close(turned, scores.flip(1))
    torch.testing.assert_close(changed[1:], scores[1:])
    assert (changed[0] != scores[0]).any()


@pytest.fixture(scope="module")
def taught() -> Scenes:
    return reading_scenes(EYES, random_cells(460, 0), 0, workers=2)


class TestReading:
    LESSON = Lesson(scenes=460, updates=4, batch=8)

    def reading(self, tiny: TrainedPolicy, folder: Path, taught: Scenes, **changes: int) -> Reading:
        made = Reading(tiny, replace(self.LESSON, **changes), folder, workers=1)
        made.__dict__["scenes"] = taught  # rendered already
        return made

    def test_it_begins_as_the_policy_and_goes_on_where_it_stopped(
        self, tiny: TrainedPolicy, taught: Scenes, tmp_path: Path
    ) -> None:
        whole = self.reading(tiny, tmp_path / "whole", taught)
        for name, value in tiny.network.state_dict().items():
            assert (whole.reader.state_dict()[name] == value).all()
        whole.run(lambda *_: None, log_every=1)

        def stop(update: int, figures: dict) -> None:
            if update == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.reading(tiny, tmp_path / "stopped", taught).run(stop, log_every=1, save_every=2)
        resumed = self.reading(tiny, tmp_path / "stopped", taught)
        assert resumed.update == 2
        resumed.run(lambda *_: None)
        ours, theirs = whole.reader.state_dict(), resumed.reader.state_dict()
        assert all((ours[name] == theirs[name]).all() for name in ours)
        assert any((ours[name] != value).any() for name, value in tiny.network.state_dict().items())

    def test_another_lesson_is_refused(self, tiny: TrainedPolicy, taught: Scenes, tmp_path: Path) -> None:
        self.reading(tiny, tmp_path, taught).run(lambda *_: None)
        with pytest.raises(UserError, match="belongs to another card or recipe"):
            self.reading(tiny, tmp_path, taught, updates=5)


class TestChoices:
    def test_who_knows_the_marks_is_always_right(self, scenes: Scenes) -> None:
        trials = choose("oracle", Oracle(scenes), scenes, seed=0)
        assert (trials["named"] == trials["chosen"]).all()
        assert trials["size"].tolist() == [3.0, 6.0, 2.0, 3.0]

    def test_who_knows_nothing_is_right_by_chance(self, scenes: Scenes) -> None:
        asked = many(scenes, 100)
        trials = choose("blind", Oracle(asked, blind=True), asked, seed=0)
        assert 0.15 < (trials["named"] == trials["chosen"]).mean() < 0.35

    def test_a_surface_counts_every_trial_once(self, scenes: Scenes) -> None:
        asked = many(scenes, 25)
        cells = surface(choose("oracle", Oracle(asked), asked, seed=0))
        assert cells["trials"].tolist() == [50, 25, 25]
        assert (cells["right"] == cells["trials"]).all()
        assert ((cells["low"] < cells["share"]) & (cells["share"] <= cells["high"])).all()


def cells_of(shares: dict[float, int]) -> pd.DataFrame:
    return pd.DataFrame({"size": list(shares), "right": list(shares.values()), "trials": 100})


class TestThresholds:
    def test_it_lies_where_the_shares_rise(self) -> None:
        found = threshold(cells_of({1.0: 25, 1.5: 27, 2.2: 40, 3.2: 85, 4.6: 100}), resamples=20)
        assert 2.2 < found.degrees < 3.2
        assert found.samples.std() > 0

    def test_what_lies_beyond_the_marks_shown_is_said_to(self) -> None:
        never = threshold(cells_of({1.0: 25, 1.5: 26, 2.2: 24, 3.2: 25}), resamples=10)
        assert (never.degrees, never.known) == (np.inf, False)
        assert described(never).startswith("> 3.2 [")
        always = threshold(cells_of({1.0: 100, 1.5: 100, 2.2: 100, 3.2: 100}), resamples=10)
        assert (always.degrees, always.known) == (0.0, False)
        assert described(always) == "< 1 [< 1, < 1]"
        nearly = threshold(cells_of({1.0: 30, 1.5: 30, 2.2: 45, 3.2: 64}), resamples=40)
        assert np.isfinite(nearly.degrees)
        assert not nearly.known, "too many of its bootstrap values lie beyond"
        assert described(nearly).endswith("> 3.2]")
        assert [beyond(value) for value in (never, always)] == [(3.2, "^"), (1.0, "v")]
        assert beyond(nearly) == (nearly.degrees, "^")
        easy = Threshold(1.05, np.array([0.0] * 5 + [1.1] * 35), smallest=1.0, largest=6.8)
        assert not easy.known
        assert beyond(easy) == (1.05, "v"), "not at the far end of the marks"

    def test_sensor_pixels_are_those_of_the_projection(self) -> None:
        """Against two points that are projected by hand, along the radius and across it."""
        focal, place, size = 256 / np.tan(np.radians(52)), np.radians(30), np.radians(0.01)
        radial = focal * (np.tan(place + size / 2) - np.tan(place - size / 2))
        across = focal * 2 * np.tan(size / 2) / np.cos(place)
        assert sensor_pixels(0.01, 30.0, 512, 104.0) == pytest.approx(np.sqrt(radial * across), rel=1e-4)

    def test_growth_and_e2(self) -> None:
        rng = np.random.default_rng(0)

        def some(degrees: float, spread: float = 0.01) -> Threshold:
            return Threshold(degrees, degrees + spread * rng.normal(size=50), 1.0, 10.0)

        places = {place: some(1 + place / 10) for place in (10.0, 20.0, 30.0)}
        shown = growth_of(places)
        assert shown["slope"].startswith("+0.100 [+0.0")
        assert shown["slope"].endswith("over 10 to 30")
        assert shown["E2"].startswith("10.0 [")
        never = Threshold(np.inf, np.full(50, np.inf), 1.0, 10.0)
        assert growth_of(places | {40.0: never})["slope"].endswith("over 10 to 30")
        assert growth_of({10.0: never, **{p: places[p] for p in (20.0, 30.0)}}) == {"slope": "-", "E2": "-"}
        flat = {place: some(2.0, 0.1) for place in (10.0, 20.0, 30.0)}
        assert growth_of(flat)["E2"] == "-", "E2 has no meaning where acuity does not fall"


def test_trials_are_asked_once(scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrvlm_sim.evaluation.acuity.trial_cells", lambda trials: CELLS[:trials])
    asked = Examination(trials=4, seed=0, workers=1)
    first = asked.of("oracle", Oracle(scenes), EYES, tmp_path / "new" / "trials.csv")
    again = asked.of("oracle", Oracle(scenes, blind=True), EYES, tmp_path / "new" / "trials.csv")
    pd.testing.assert_frame_equal(first, again)
    other = replace(asked, seed=1).of("oracle", Oracle(scenes), EYES, tmp_path / "new" / "trials.csv")
    assert (other["seed"] == 1).all()


def test_what_is_written(tiny: TrainedPolicy, scenes: Scenes, tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for size, place in trial_cells(20):
        share = 0.25 + 0.75 / (1 + np.exp(-4 * np.log2(size / (1 + place / 20))))
        chosen = np.where(rng.random() < share, 0, 1)
        rows.append({"arm": "tiny", "size": size, "eccentricity": place, "named": 0, "chosen": int(chosen)})
    trials = pd.DataFrame(rows)
    table = write_acuity(tmp_path / "new", trials, thresholds(surface(trials), resamples=10), {"tiny": tiny})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "acuity.png", "surface.csv", "thresholds.csv", "thresholds.md", "trials.csv",
    ]  # fmt: skip
    assert table.loc[0, "tokens"] == "48"
    assert table.loc[0, "slope"].startswith("+")
    assert " px" in table.loc[0, "20 degrees off"]
    assert iio.imread(tmp_path / "new" / "acuity.png").shape[1] > 600


def test_what_was_right_is_paired(tmp_path: Path) -> None:
    chosen = {"sharp": [0, 0, 0, 1, 0, 0, 0, 0, 0, 0], "dull": [0, 1, 1, 1, 1, 1, 1, 1, 0, 1]}
    trials = pd.DataFrame([{"arm": arm, "named": 0, "chosen": mark} for arm, marks in chosen.items() for mark in marks])
    table = write_right(tmp_path, trials, "dull").set_index("arm")
    assert table["right %"].tolist() == ["90.0 [59.6, 98.2]", "20.0 [5.7, 51.0]"]
    assert table.loc["sharp", "difference to dull"].startswith("+70.0 [")
    assert table.loc["sharp", "McNemar p (Holm)"] == "0.016 (0.016)"
    assert table.loc["dull", "difference to dull"] == "-"
    assert (tmp_path / "right.csv").is_file()


def test_a_reference_that_is_no_arm_is_refused_before_anything_is_learned(tiny_folder: Path, tmp_path: Path) -> None:
    chosen = ["acuity", "--arm", str(tiny_folder), "--reference", "tinny", "--output", str(tmp_path / "new")]
    result = CliRunner().invoke(app, chosen)
    assert isinstance(result.exception, UserError)
    assert "unknown arm 'tinny'. Did you mean 'tiny'?" in str(result.exception)
    assert not (tmp_path / "new").exists()


def test_only_trained_arms_can_be_examined(tiny_folder: Path, tmp_path: Path) -> None:
    assert list(load_readable([str(tiny_folder)])) == ["tiny"]
    with pytest.raises(UserError, match="takes arms with weights and policy folders, not expert"):
        load_readable(["expert"])
    with pytest.raises(UserError, match="two arms are called tiny"):
        load_readable([str(tiny_folder), str(tiny_folder / ".")])
    with pytest.raises(UserError, match="has chosen its gaze only after that"):
        load_readable([str(save_tiny(tmp_path / "looks", eyes="gaze-policy"))])
    with pytest.raises(UserError, match="unknown policy 'uniform-48'"):
        load_readable(["uniform-48"])
