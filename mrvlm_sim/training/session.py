"""One training from card to policy folder: demonstrations, rendered views, updates, weights."""

import copy
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.trained import TrainedPolicy, save_trained
from mrvlm_sim.training.bc import Dataset, Trainer
from mrvlm_sim.training.demos import Demonstrations, record
from mrvlm_sim.training.views import render_views

Log = Callable[[int, dict[str, float]], None]
Evaluate = Callable[[TrainedPolicy], float]

DEMONSTRATIONS = Path("data") / "demos"


@dataclass(frozen=True)
class Folders:
    """Where a training keeps its things; demonstrations and views are shared between arms."""

    output: Path  # checkpoint, curves and, in the end, the policy folder `policy`
    demonstrations: Path = DEMONSTRATIONS
    views: Path = Path("data") / "views"


def demonstrations_path(folder: Path, environment: str, episodes: int, seed: int) -> Path:
    """The file that holds so many demonstrations of one environment."""
    return folder / f"{environment}-{episodes}-{seed}.npz"


def get_demonstrations(
    folder: Path, environment: str, episodes: int, seed: int, progress: Callable[[int], None]
) -> Path:
    """Record demonstrations unless they are there already; returns their file."""
    path = demonstrations_path(folder, environment, episodes, seed)
    if not path.exists():
        record(environment, episodes, seed, progress).save(path)
    return path


def make_trainer(
    card: PolicyCard, demos: Demonstrations, folders: Folders, device: torch.device, workers: int
) -> Trainer:
    """Render what is missing in the cache and set the trainer up, resumed if there is a checkpoint."""
    views = {name: render_views(demos, name, p, folders.views, workers) for name, p in card.cameras.items()}
    return Trainer(card, Dataset(demos, views, card.network.chunk, device), folders.output)


def train(trainer: Trainer, log: Log, evaluate: Evaluate | None, evaluate_every: int, threads: int) -> Path:
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


def snapshot(trainer: Trainer) -> TrainedPolicy:
    """The policy as it is now, apart from the network that goes on learning."""
    return TrainedPolicy(trainer.card, copy.deepcopy(trainer.network), trainer.dataset.device)


def finish(trainer: Trainer) -> Path:
    """Write the policy folder: card with hash, versions and time, and the weights."""
    import gymnasium
    import mujoco

    versions = {"torch": torch.__version__, "mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__}
    device = platform.machine() if trainer.dataset.device.type == "cpu" else torch.cuda.get_device_name()
    folder = trainer.folder / "policy"
    made_by = {"minutes": round(trainer.seconds / 60, 1), "device": device, "versions": versions}
    save_trained(folder, trainer.card, trainer.network, **made_by)
    return folder
