"""The attacks judged by defences of which it is known what they are worth: planted, broken, and real."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrvlm_sim.agents.card import AdversarialTraining
from mrvlm_sim.metrics.attacks import Attack, Threat, Victim
from mrvlm_sim.metrics.attacks.base import tensors
from mrvlm_sim.metrics.attacks.gradient import APGD, PGD
from mrvlm_sim.metrics.attacks.search import BestOfNoise, Square
from mrvlm_sim.training.adversarial import attacked
from mrvlm_sim.vision import Jitter, Pyramid, cut_batch
from mrvlm_sim.wrappers.tokens import Frames

EYES = {"wrist": Pyramid(frame_size=32, patch=2, grids=(4, 4, 4), jitter=Jitter(tremor=0.1))}
EPS = 8 / 255


def attack(kind: type[Attack], policy: object, frames: Frames, surrogate: object = None, **threat: Any) -> Frames:
    size = Threat(**{"eps": EPS, "steps": 10, "draws": 16, **threat})
    more = {"surrogate": Victim(surrogate, EYES)} if surrogate is not None else {}
    return kind(size, Victim(policy, EYES), np.random.default_rng(0), **more)(frames, {})


@torch.no_grad()
def acts(policy: Any, frames: Frames) -> float:
    """The action in the mean over fresh jitter."""
    draws = EYES["wrist"].place(EYES["wrist"].jitter.stationary(np.random.default_rng(5), (20, 3, 2)))
    return float(policy.action_chunks(tensors(frames), {"wrist": draws}, {}).mean())


class TestPlanted:
    """A weak pattern in one place turns the action round; nothing else does anything."""

    trigger = torch.tensor([1.0, -1.0, 1.0])  # of every pixel in its place

    def action_chunks(self, frames: Mapping[str, Tensor], origins: Mapping[str, np.ndarray], _: object) -> Tensor:
        there = ((frames["wrist"][4:12, 20:28] - 128 / 255) * self.trigger).mean() / EPS  # 1: the pattern at full size
        return (2 * torch.sigmoid(20 * (there - 0.5)) - 1).expand(len(origins["wrist"]), 1, 1)

    @pytest.mark.parametrize("kind", [PGD, APGD, Square])
    def test_it_is_found(self, kind: type[Attack]) -> None:
        grey = {"wrist": np.full((32, 32, 3), 128, np.uint8)}
        assert acts(self, grey) < -0.99
        assert acts(self, attack(kind, self, grey, draws=1, steps=40, restarts=6)) > 0.5

    def test_chance_does_not_find_it(self) -> None:
        grey = {"wrist": np.full((32, 32, 3), 128, np.uint8)}
        assert acts(self, attack(BestOfNoise, self, grey, draws=1)) < -0.9


class Ensemble:
    """Three resolutions, cut anew in every look, each read in steps without slope; the median of three decides.

    Small, random and broken: as defences that adaptive attacks took apart (Athalye et al., 2018; Tramer et al., 2020;
    "ensemble everything everywhere", 2024). `smooth` is what an attacker puts in its place: the same without steps.
    """

    def __init__(self, smooth: bool = False) -> None:
        self.smooth = smooth
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(8, 8, 3, generator=generator) for _ in range(3)]
        self.offset = torch.stack([weights.mean() / 2 for weights in self.weights])

    def readings(self, frames: Mapping[str, Tensor], origins: Mapping[str, np.ndarray]) -> Tensor:
        views = cut_batch(frames["wrist"], origins["wrist"], EYES["wrist"])
        if not self.smooth:
            views = [((40 * view).round() / 40).detach() + 0 * view for view in views]
        read = [(view * weights).mean(dim=(1, 2, 3)) for view, weights in zip(views, self.weights, strict=True)]
        return torch.stack(read) - self.offset[:, None]

    def action_chunks(self, frames: Mapping[str, Tensor], origins: Mapping[str, np.ndarray], _: object) -> Tensor:
        readings = self.readings(frames, origins)
        decided = readings.mean(0) if self.smooth else readings.median(0).values
        return torch.tanh(200 * decided)[:, None, None]


class TestBroken:
    def test_a_random_ensemble_without_slopes_looks_strong_and_is_not(self) -> None:
        """Less than a fifth of what the naive attack leaves is left by the adaptive one, which differs in nothing but
        whose slopes it takes."""
        rng = np.random.default_rng(0)
        looks = [
            {"wrist": rng.integers(110, 147, (8, 8, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)} for _ in range(16)
        ]
        defence, smooth = Ensemble(), Ensemble(smooth=True)
        left = {"naive": 0, "adaptive": 0}
        for frames in looks:
            right = np.sign(acts(defence, frames))
            naive = attack(PGD, defence, frames, draws=8, restarts=8)
            adaptive = attack(PGD, defence, frames, surrogate=smooth, draws=8, restarts=8)
            left["naive"] += np.sign(acts(defence, naive)) == right
            left["adaptive"] += np.sign(acts(defence, adaptive)) == right
        assert left["naive"] >= 0.8 * len(looks), left
        assert left["adaptive"] < 0.2 * left["naive"], left


class Readout:
    """One action from all pixels, by a linear layer."""

    def __init__(self, hardened: bool) -> None:
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8 * 8 * 3, 1)
        optimiser, rng = torch.optim.Adam(self.layer.parameters(), 6e-3), np.random.default_rng(0)
        adversary = AdversarialTraining(eps=2 * EPS, steps=3, warm_up=0.1)
        for update in range(300):
            pixels, side = examples(64, rng)
            tokens: Mapping[str, Tensor] = {"wrist": pixels}

            def loss(tokens: Mapping[str, Tensor], side: Tensor = side) -> Tensor:
                return torch.nn.functional.softplus(-side * self.read(tokens["wrist"])).mean()

            if hardened:
                tokens = attacked(tokens, loss, adversary, update / 300, rng)
            optimiser.zero_grad()
            loss(tokens).backward()
            optimiser.step()

    def read(self, pixels: Tensor) -> Tensor:
        return self.layer(20 * (pixels.flatten(1) - 0.5))[:, 0]

    def action_chunks(self, frames: Mapping[str, Tensor], origins: object, _: object) -> Tensor:
        return torch.tanh(0.1 * self.read(frames["wrist"][None]))[:, None, None]


def examples(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Frames (B, 8, 8, 3) of two sides that one strong feature tells apart nearly always, and all weak ones together
    always (Tsipras et al., "Robustness may be at odds with accuracy", 2019)."""
    side = rng.choice([-1.0, 1.0], count)
    pixels = 0.5 + 0.03 * side[:, None, None, None] + rng.normal(0, 0.1, (count, 8, 8, 3))
    told = side * np.where(rng.random(count) < 0.95, 1, -1)
    pixels[:, 0] = 0.5 + 0.2 * told[:, None, None] + rng.normal(0, 0.1, (count, 8, 3))
    return torch.from_numpy(pixels.clip(0, 1)).float(), torch.from_numpy(side).float()


class TestControl:
    def test_what_learned_under_attack_keeps_its_robustness(self) -> None:
        pixels, sides = examples(24, np.random.default_rng(1))
        right = {}
        for hardened in (False, True):
            policy = Readout(hardened)
            frames = [{"wrist": np.rint(255 * one.numpy()).astype(np.uint8)} for one in pixels]
            under = [
                attack(PGD, policy, frame, draws=1, knowledge="off", eps=2 * EPS, restarts=8, steps=3)
                for frame in frames
            ]
            for name, seen in (("clean", frames), ("attacked", under)):
                signs = [np.sign(acts(policy, frame)) for frame in seen]
                right[hardened, name] = float(np.mean(np.array(signs) == sides.numpy()))
        assert right[False, "clean"] > 0.97
        assert right[False, "attacked"] < 0.3, "the control of the control"
        assert right[True, "attacked"] > 0.85
