"""The acuity surface: which marks an arm can read, by their size and their eccentricity.

A reader (the arm's own encoder, trained on, with a small head) chooses among four plates the one that bears the named
mark, from the first look alone, and is told where the plates are. That is a forced choice among four: 25 % are right by
guessing.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.evaluation.costs import field_of_view
from mrvlm_sim.evaluation.tables import policy_cost
from mrvlm_sim.metrics.psychometrics import fit_psychometric, growth, interval, resample
from mrvlm_sim.metrics.statistics import wilson
from mrvlm_sim.models.reader import MarkReader
from mrvlm_sim.paths import make_parent, write_atomically
from mrvlm_sim.seeding import generator
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.tasks.read_mark import CAMERA, PLATES, largest_mark
from mrvlm_sim.training.reading import ENVIRONMENT, Cell, Scenes, read, reading_scenes
from mrvlm_sim.vision import Pyramid

SIZES = (1.0, 1.5, 2.2, 3.2, 4.6, 6.8, 10.0)  # degrees, half an octave apart
ECCENTRICITIES = (12.0, 16.0, 20.0, 25.0, 30.0, 36.0, 42.0)  # degrees
CHANCE = 1 / len(PLATES)
RESAMPLES = 400
MOST_BEYOND = 0.05  # of bootstrap values, for a threshold that counts as known
BATCH = 100
TRIAL_SEED = 1_000_003  # so that no trial shows what was taught


def trial_cells(trials: int) -> list[Cell]:
    """Every size at every eccentricity where four plates of it fit, `trials` times over."""
    cells = [(size, place) for place in ECCENTRICITIES for size in SIZES if size <= largest_mark(place)]
    return [cell for cell in cells for _ in range(trials)]


@dataclass(frozen=True)
class Examination:
    """So many trials of every cell; every arm gets the same scenes, none of which was used for teaching."""

    trials: int
    seed: int
    workers: int  # processes that render

    def of(self, arm: str, reader: MarkReader, cameras: dict[str, Pyramid], file: Path) -> pd.DataFrame:
        """The trials of one arm, kept in a file; taken from there if they are the same."""
        if file.is_file() and self._asked_in(known := pd.read_csv(file)):
            return known
        scenes = reading_scenes(cameras, trial_cells(self.trials), TRIAL_SEED + self.seed, self.workers)
        chosen = choose(arm, reader, scenes, self.seed)
        make_parent(file)
        write_atomically(file, chosen.to_csv(index=False))
        return chosen

    def _asked_in(self, table: pd.DataFrame) -> bool:
        same_cells = len(table) == len(trial_cells(self.trials)) and (table["seed"] == self.seed).all()
        return bool(
            same_cells and [*zip(table["size"], table["eccentricity"], strict=True)] == trial_cells(self.trials)
        )


def choose(arm: str, reader: MarkReader, scenes: Scenes, seed: int) -> pd.DataFrame:
    """A row per trial: arm, size, eccentricity, the plate named and the plate chosen."""
    chosen = []
    for part in np.array_split(np.arange(len(scenes.named)), max(1, len(scenes.named) // BATCH)):
        with torch.inference_mode():
            scores = read(reader, scenes, part, generator(seed, ENVIRONMENT, int(part[0]), "reading jitter"))
        asked = torch.from_numpy(scenes.marks[part, scenes.named[part]])
        shares = scores.cpu().log_softmax(dim=-1)
        chosen.append(shares[torch.arange(len(part)), :, asked].argmax(dim=1).numpy())
    size, eccentricity = scenes.cells.T
    table = {"arm": arm, "seed": seed, "size": size, "eccentricity": eccentricity, "named": scenes.named}
    return pd.DataFrame(table | {"chosen": np.concatenate(chosen)})


@dataclass(frozen=True)
class Threshold:
    """The mark that an arm can just read at one eccentricity, in degrees.

    0 if it reads the smallest of the marks shown, infinity if not even the largest; both say that the threshold lies
    beyond what was tried. `samples` are bootstrap values.
    """

    degrees: float
    samples: np.ndarray
    smallest: float  # of the marks shown
    largest: float

    @property
    def known(self) -> bool:
        """Whether it lies within the marks shown, and nearly all of its bootstrap values do."""
        return bool(0 < self.degrees < np.inf and (~within(self.samples)).mean() <= MOST_BEYOND)


def within(thresholds: np.ndarray) -> np.ndarray:
    """Which thresholds lie within the marks that were shown."""
    return (thresholds > 0) & np.isfinite(thresholds)


def surface(trials: pd.DataFrame) -> pd.DataFrame:
    """A line per arm, eccentricity and size: trials, how many were right, and the share with its interval."""
    right = trials["named"] == trials["chosen"]
    cells = trials.assign(right=right).groupby(["arm", "eccentricity", "size"], sort=False)["right"]
    counted = cells.agg(["sum", "count"]).rename(columns={"sum": "right", "count": "trials"}).reset_index()
    limits = [wilson(int(k), int(n)) for k, n in zip(counted["right"], counted["trials"], strict=True)]
    low, high = np.array(limits).T
    return counted.assign(share=counted["right"] / counted["trials"], low=low, high=high)


def threshold(cells: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> Threshold:
    """Fit the psychometric function of one arm at one eccentricity, and of bootstrap samples of its trials."""
    sizes, right, trials = (cells[name].to_numpy() for name in ("size", "right", "trials"))
    rng, best = np.random.default_rng(seed), fit_psychometric(sizes, right, trials, CHANCE)
    drawn = [resample(best, sizes, trials, rng) for _ in range(resamples)]
    samples = [fit_psychometric(sizes, counts, trials, CHANCE, near=best).threshold for counts in drawn]
    values = np.array([best.threshold, *samples])
    smallest, largest = float(sizes.min()), float(sizes.max())
    values = np.where(values < smallest, 0.0, np.where(values > largest, np.inf, values))
    return Threshold(float(values[0]), values[1:], smallest, largest)


def thresholds(surfaces: pd.DataFrame, resamples: int = RESAMPLES) -> dict[str, dict[float, Threshold]]:
    """By arm and eccentricity."""
    found: dict[str, dict[float, Threshold]] = {}
    for (arm, place), cells in surfaces.groupby(["arm", "eccentricity"], sort=False):
        found.setdefault(str(arm), {})[float(place)] = threshold(cells, resamples)
    return found


def sensor_pixels(degrees: float, eccentricity: float, frame: int, fov: float) -> float:
    """Height on the sensor of something that subtends so many degrees off the axis of a pinhole camera.

    A flat picture stretches what lies off its axis, along the radius by 1 / cos^2 and across it by 1 / cos; the mean
    of both, geometric, is taken. `frame` is the sensor's width in pixels, `fov` its angle of view in degrees.
    """
    focal = frame / 2 / np.tan(np.radians(fov) / 2)
    return float(focal * np.radians(degrees) / np.cos(np.radians(eccentricity)) ** 1.5)


def threshold_table(
    found: Mapping[str, Mapping[float, Threshold]], policies: Mapping[str, TrainedPolicy]
) -> pd.DataFrame:
    """A line per arm: its cost, then for every eccentricity the threshold in degrees and in sensor pixels."""
    with closing(make_own_env(ENVIRONMENT)) as env:
        fov = field_of_view(env, CAMERA)
    lines = []
    for arm, places in found.items():
        line = {"arm": arm, **arm_cost(policies[arm])}
        frame = policies[arm].card.cameras[CAMERA].frame_size
        for place, value in places.items():
            pixels = (
                f", {sensor_pixels(value.degrees, place, frame, fov):.1f} px" if within(np.array(value.degrees)) else ""
            )
            line[f"{place:g} degrees off"] = described(value) + pixels
        lines.append(line | growth_of(places))
    return pd.DataFrame(lines)


def arm_cost(policy: TrainedPolicy) -> dict[str, str]:
    """Tokens of a look and GFLOPs of a forward of the policy."""
    cost = policy_cost(policy)
    return {"tokens": f"{cost['tokens']:.0f}", "GFLOPs": f"{cost['gflops_forward']:.3f}"}


def growth_of(places: Mapping[float, Threshold]) -> dict[str, str]:
    """How the thresholds grow with eccentricity, and E2, over those eccentricities where they are known.

    At least three must be.
    E2 is given where acuity falls with eccentricity for sure.
    """
    known = {place: value for place, value in places.items() if value.known}
    if len(known) < 3:
        return {"slope": "-", "E2": "-"}
    x = np.array(list(known))
    slope, start = growth(x, np.array([value.degrees for value in known.values()]))
    drawn = np.array([value.samples for value in known.values()]).T
    fits = np.array([growth(x, sample) for sample in drawn if within(sample).all()])
    low, high = interval(fits[:, 0])
    shown = {"slope": f"{slope:+.3f} [{low:+.3f}, {high:+.3f}] over {x.min():g} to {x.max():g}", "E2": "-"}
    if low > 0 and start > 0:
        e2 = interval(fits[:, 1] / fits[:, 0])
        shown["E2"] = f"{start / slope:.1f} [{e2[0]:.1f}, {e2[1]:.1f}]"
    return shown


def described(value: Threshold) -> str:
    """A threshold in degrees with its interval; what lies beyond the marks shown is said to."""
    low, high = interval(value.samples, method="nearest")
    limits = f"[{_bounded(low, value)}, {_bounded(high, value)}]"
    return f"{_bounded(value.degrees, value)} {limits}"


def _bounded(degrees: float, value: Threshold) -> str:
    if within(np.array(degrees)):
        return f"{degrees:.2f}"
    return f"< {value.smallest:g}" if degrees == 0 else f"> {value.largest:g}"
