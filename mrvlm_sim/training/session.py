"""One training from card to policy folder: demonstrations, rendered views, updates, weights."""

import copy
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.trained import TrainedPolicy, save_trained
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.paths import runs_folder
from mrvlm_sim.tasks import split_settings
from mrvlm_sim.training.bc import Cloning
from mrvlm_sim.training.dataset import Dataset
from mrvlm_sim.training.demos import Demonstrations, record
from mrvlm_sim.training.trainer import Log
from mrvlm_sim.training.views import render_views
from mrvlm_sim.wrappers.gaze import gaze_at

Evaluate = Callable[[TrainedPolicy], float]

DEMONSTRATIONS = Path("data") / "demos"


@dataclass(frozen=True)
class Folders:
    """Where a training keeps its things; demonstrations and views are shared between arms."""

    output: Path  # checkpoint, curves and, in the end, the policy folder `policy`
    demonstrations: Path = DEMONSTRATIONS
    views: Path = Path("data") / "views"


def default_output(card: PolicyCard, arm: str) -> Path:
    """Where an arm is trained if nothing else is said."""
    names = [split_settings(environment)[0] for environment in card.environments]
    what = "-".join(names) if len(names) < 4 else f"{len(names)}-tasks-{_short_hash(*card.environments)}"
    return runs_folder() / f"bc-{what}-{arm}".replace("/", "-")


def demonstrations_path(folder: Path, environment: str, episodes: int, seed: int) -> Path:
    """The file that holds so many demonstrations of one environment."""
    name, settings = split_settings(environment)
    title = f"{name}-{_short_hash(environment)}" if settings else name
    return folder / f"{title}-{episodes}-{seed}.npz"


def _short_hash(*texts: str) -> str:
    return f"{crc32(chr(10).join(texts).encode()):08x}"


def get_demonstrations(
    folder: Path, environment: str, episodes: int, seed: int, progress: Callable[[int], None]
) -> Path:
    """Record demonstrations unless they are there already; returns their file."""
    path = demonstrations_path(folder, environment, episodes, seed)
    if not path.exists():
        record(environment, episodes, seed, progress).save(path)
    return path


def make_trainer(
    card: PolicyCard, demos: Sequence[Demonstrations], folders: Folders, device: torch.device, workers: int
) -> Cloning:
    """Render what is missing in the cache and set the trainer up, resumed if there is a checkpoint."""
    return Cloning(card, [_dataset(card, each, folders, device, workers) for each in demos], folders.output)


def _dataset(card: PolicyCard, demos: Demonstrations, folders: Folders, device: torch.device, workers: int) -> Dataset:
    stride = card.cloning.stride
    seen = {name: render_views(demos, name, p, stride, folders.views, workers) for name, p in card.cameras.items()}
    views = {name: rendered for name, (rendered, _) in seen.items()}
    gazes = [_next_gazes(demos, places) for name, (_, places) in seen.items() if card.cameras[name].gaze == "policy"]
    return Dataset(demos, views, card.network.chunk, stride, device, gazes)


def _next_gazes(demos: Demonstrations, places: np.ndarray) -> np.ndarray:
    """What to look at next, float32 (F, 2): the named thing, where it is in the frame after this one."""
    after = np.arange(1, len(places) + 1)
    last = np.searchsorted(demos.episode, demos.episode, side="right") - 1
    return gaze_at(places)[np.minimum(after, last)].astype(np.float32)


def train(trainer: Cloning, log: Log, evaluate: Evaluate | None, evaluate_every: int, threads: int) -> Path:
    """Train to the end with TensorBoard curves and periodic evaluation; returns the policy folder."""
    from torch.utils.tensorboard import SummaryWriter

    torch.set_num_threads(threads)
    with SummaryWriter(str(trainer.folder)) as curves:

        def log_all(update: int, figures: dict[str, float]) -> None:
            if evaluate is not None and update % evaluate_every == 0:
                figures = figures | {"eval/success": evaluate(snapshot(trainer))}
            for name, value in figures.items():
                curves.add_scalar(name, value, update)
            log(update, figures)

        trainer.run(log_all)
    return finish(trainer)


def snapshot(trainer: Cloning) -> TrainedPolicy:
    """The policy as it is now, apart from the network that goes on learning."""
    return TrainedPolicy(trainer.card, copy.deepcopy(trainer.network), trainer.device)


def finish(trainer: Cloning) -> Path:
    """Write the policy folder."""
    return write_policy(trainer.folder / "policy", trainer.card, trainer.network, trainer.seconds)


def write_policy(folder: Path, card: PolicyCard, network: PolicyNetwork, seconds: float) -> Path:
    """Card with hash, versions and the time of training, and the weights; returns the folder."""
    versions = {name: version(name) for name in ("torch", "mujoco", "gymnasium")}
    if card.training.method != "bc":
        versions["stable-baselines3"] = version("stable-baselines3")
    on_cpu = network.proprio_mean.device.type == "cpu"
    device = platform.machine() if on_cpu else torch.cuda.get_device_name()
    save_trained(folder, card, network, minutes=max(0.1, round(seconds / 60, 1)), device=device, versions=versions)
    return folder
