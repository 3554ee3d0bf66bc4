"""Our PGD and Square beside those of the Adversarial Robustness Toolbox (Nicolae et al., 2018), on one network."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mrvlm_sim.metrics.attacks import Attack, Threat, Victim
from mrvlm_sim.metrics.attacks.gradient import PGD
from mrvlm_sim.metrics.attacks.search import QUERIES, Square
from mrvlm_sim.vision import Pyramid

pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
from art.attacks.evasion import ProjectedGradientDescentPyTorch, SquareAttack
from art.estimators.classification import PyTorchClassifier

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of art, under numpy 2
SIZE, EPS, STEPS = 16, 8 / 255, 20
EYES = {"wrist": Pyramid(frame_size=SIZE, patch=4, grids=(4,))}


class Margin(nn.Module):
    """How much likelier a small network holds one class to be than another: an action for us, two logits for art."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 6 * 6, 16), nn.Tanh(), nn.Linear(16, 1)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        margin = self.body(20 * (pixels - 0.5))
        return torch.cat([margin, -margin], dim=1) / 2

    def action_chunks(self, frames: Mapping[str, Tensor], origins: object, observation: object) -> Tensor:
        logits = self(frames["wrist"].movedim(-1, 0)[None])
        return (logits[:, :1] - logits[:, 1:])[:, None] / 4  # well within the actions' range: both directions pay


@pytest.fixture(scope="module")
def network() -> Margin:
    return Margin().eval()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 196, (12, SIZE, SIZE, 3)).astype(np.uint8)


@torch.no_grad()
def margins(network: Margin, pixels: np.ndarray) -> np.ndarray:
    logits = network(torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 1)).numpy()
    return logits[:, 0] - logits[:, 1]


def ours(kind: type[Attack], network: Margin, frames: np.ndarray, steps: int, restarts: int = 1) -> np.ndarray:
    found = []
    for index, frame in enumerate(frames):
        threat = Threat(EPS, steps, draws=1, restarts=restarts)
        attack = kind(threat, Victim(network, EYES), np.random.default_rng(index))
        found.append(attack({"wrist": frame}, {})["wrist"])
    return np.array(found) / 255


def theirs(network: Margin, frames: np.ndarray, attack: type, **how: object) -> np.ndarray:
    estimator = PyTorchClassifier(
        network, loss=nn.CrossEntropyLoss(), input_shape=(3, SIZE, SIZE), nb_classes=2, clip_values=(0.0, 1.0)
    )
    clean, found = np.moveaxis(frames / 255, -1, 1).astype(np.float32), []
    for label in (0, 1):  # art pushes one way, ours whichever pays more
        labels = np.eye(2)[np.full(len(frames), label)]
        found.append(np.moveaxis(attack(estimator, eps=EPS, verbose=False, **how).generate(clean, labels), 1, -1))
    better = moves(network, frames, found[0]) > moves(network, frames, found[1])
    return np.where(better[:, None, None, None], *found)


def moves(network: Margin, frames: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    return np.abs(margins(network, attacked) - margins(network, frames / 255))


def pushed(network: Margin, frames: np.ndarray, attacked: np.ndarray) -> float:
    """How far the margin was moved, mean over frames."""
    return float(moves(network, frames, attacked).mean())


def test_pgd_does_as_much(network: Margin, frames: np.ndarray) -> None:
    art = theirs(
        network, frames, ProjectedGradientDescentPyTorch, eps_step=2.5 * EPS / STEPS, max_iter=STEPS, num_random_init=8
    )
    assert np.abs(art - frames / 255).max() <= EPS + 1e-6
    reached = pushed(network, frames, ours(PGD, network, frames, STEPS, restarts=8))
    assert reached >= 0.97 * pushed(network, frames, art)
    assert reached > 0.1


def test_square_does_as_much(network: Margin, frames: np.ndarray) -> None:
    queries = 400
    np.random.seed(0)  # noqa: NPY002 - art draws from there
    art = theirs(
        network, frames, SquareAttack, max_iter=queries, nb_restarts=1, p_init=Square.area,
        adv_criterion=lambda predicted, label: np.zeros(len(predicted), bool),  # never content
        loss=lambda pixels, label: margins(network, np.moveaxis(pixels, 1, -1)) * (label[:, 0] - label[:, 1]),
    )  # fmt: skip
    reached = pushed(network, frames, ours(Square, network, frames, queries // QUERIES))
    assert reached >= 0.85 * pushed(network, frames, art)
    assert reached > 0.05
