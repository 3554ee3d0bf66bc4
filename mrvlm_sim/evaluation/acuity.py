"""The acuity surface: which marks an arm can read, by their size and their eccentricity.

A reader (the arm's own encoder, trained on, with a small head) chooses among four plates the one that bears the named
mark, from the first look alone. That is a forced choice among four: 25 % are right by guessing.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.evaluation.costs import field_of_view
from mrvlm_sim.evaluation.tables import policy_cost
from mrvlm_sim.metrics.psychometrics import fit_psychometric, growth, interval, resample
from mrvlm_sim.metrics.statistics import wilson
from mrvlm_sim.models.reader import MarkReader
from mrvlm_sim.seeding import generator
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.tasks.read_mark import PLATES, largest_mark
from mrvlm_sim.training.reading import ENVIRONMENT, Cell, Scenes, read, render_scenes
from mrvlm_sim.vision import Pyramid

CAMERA = "wrist"
SIZES = (1.0, 1.5, 2.2, 3.2, 4.6, 6.8, 10.0)  # degrees, half an octave apart
ECCENTRICITIES = (12.0, 16.0, 20.0, 25.0, 30.0, 36.0, 42.0)  # degrees
CHANCE = 1 / len(PLATES)
RESAMPLES = 400
BATCH = 100
TRIAL_SEED = 1_000_003  # so that no trial shows what was taught


def trial_cells(trials: int) -> list[Cell]:
    """Every size at every eccentricity where four plates of it fit, `trials` times over."""
    cells = [(size, place) for place in ECCENTRICITIES for size in SIZES if size <= largest_mark(place)]
    return [cell for cell in cells for _ in range(trials)]


def examine(
    arm: str, reader: MarkReader, cameras: dict[str, Pyramid], trials: int, seed: int, workers: int
) -> pd.DataFrame:
    """Trials of one arm, on the same scenes as any other's with the same seed; none was used for teaching."""
    return choose(arm, reader, render_scenes(cameras, trial_cells(trials), TRIAL_SEED + seed, workers), seed)


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
    table = {"arm": arm, "size": size, "eccentricity": eccentricity, "named": scenes.named}
    return pd.DataFrame(table | {"chosen": np.concatenate(chosen)})


@dataclass(frozen=True)
class Threshold:
    """The mark that an arm can just read at one eccentricity, in degrees; infinite if none that was shown.

    `samples` are its bootstrap values.
    """

    degrees: float
    samples: np.ndarray


def surface(trials: pd.DataFrame) -> pd.DataFrame:
    """A line per arm, eccentricity and size: trials, how many were right, and the share with its interval."""
    right = trials["named"] == trials["chosen"]
    cells = trials.assign(right=right).groupby(["arm", "eccentricity", "size"], sort=False)["right"]
    counted = cells.agg(["sum", "count"]).rename(columns={"sum": "right", "count": "trials"}).reset_index()
    limits = [wilson(int(k), int(n)) for k, n in zip(counted["right"], counted["trials"], strict=True)]
    low, high = np.array(limits).T
    return counted.assign(share=counted["right"] / counted["trials"], low=low, high=high)


def threshold(cells: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> Threshold:
    """Fit the psychometric function of one arm at one eccentricity, and of bootstrap samples of its trials.

    A threshold beyond the largest mark shown is not one: infinity stands for it.
    """
    sizes, right, trials = (cells[name].to_numpy() for name in ("size", "right", "trials"))
    rng, best = np.random.default_rng(seed), fit_psychometric(sizes, right, trials, CHANCE)
    drawn = [resample(right, trials, rng) for _ in range(resamples)]
    samples = [fit_psychometric(sizes, counts, trials, CHANCE, near=best).threshold for counts in drawn]
    values = np.array([best.threshold, *samples])
    values[values > sizes.max()] = np.inf
    return Threshold(float(values[0]), values[1:])


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
            pixels = sensor_pixels(value.degrees, place, frame, fov)
            line[f"{place:g} degrees off"] = (
                f"{_degrees(value)}, {pixels:.1f} px" if np.isfinite(pixels) else "not read"
            )
        lines.append(line | growth_of(places))
    return pd.DataFrame(lines)


def arm_cost(policy: TrainedPolicy) -> dict[str, str]:
    """Tokens of a look and GFLOPs of a forward of the policy."""
    cost = policy_cost(policy)
    return {"tokens": f"{cost['tokens']:.0f}", "GFLOPs": f"{cost['gflops_forward']:.3f}"}


def growth_of(places: Mapping[float, Threshold]) -> dict[str, str]:
    """How the thresholds grow with eccentricity, and E2, where that is read at three eccentricities at least."""
    read_at = [place for place, value in places.items() if np.isfinite(value.degrees)]
    if len(read_at) < 3:
        return {"slope": "-", "E2": "-"}
    x = np.array(read_at)
    slope, start = growth(x, np.array([places[place].degrees for place in read_at]))
    drawn = np.array([places[place].samples for place in read_at]).T
    fits = np.array([growth(x, sample) for sample in drawn if np.isfinite(sample).all()])
    if len(fits) < len(drawn) / 2:
        return {"slope": f"{slope:+.3f}", "E2": "-"}
    low, high = interval(fits[:, 0])
    shown = {"slope": f"{slope:+.3f} [{low:+.3f}, {high:+.3f}]", "E2": "-"}
    if low > 0 and start > 0:
        e2 = interval(fits[:, 1] / fits[:, 0])
        shown["E2"] = f"{start / slope:.1f} [{e2[0]:.1f}, {e2[1]:.1f}]"
    return shown


def _degrees(value: Threshold) -> str:
    low, high = interval(np.minimum(value.samples, 1e9))
    return f"{value.degrees:.2f} [{low:.2f}, {'more' if high > 1e6 else f'{high:.2f}'}]"
