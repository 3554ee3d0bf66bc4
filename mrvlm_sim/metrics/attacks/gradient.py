"""White-box attacks: up the gradient of an objective, in expectation over the jitter (Athalye et al., 2018)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.base import (
    Attack,
    DifferentiablePolicy,
    EncodingPolicy,
    Origins,
    TensorFrames,
    Victim,
    tensors,
)
from mrvlm_sim.metrics.attacks.objectives import Decoy, Deviation, ExecutedDeviation, FeatureDeviation, Objective
from mrvlm_sim.metrics.attacks.regions import FreePatch, Mask, patch_places, patch_sums
from mrvlm_sim.metrics.attacks.threat import Threat
from mrvlm_sim.sim.suite_env import Observation
from mrvlm_sim.wrappers.tokens import Frames

PLACES, BESIDE = 4, 2 / 255  # at which a patch is tried, and how far from the frame its slopes are taken


class GradientAttack(Attack):
    """Owns gradients, bounds on the way and the choice of jitter; a new attack fills `climb`.

    With a `surrogate`, gradients are of that one, and what they lead to is tried on the victim.

    Raises:
        UserError: it is to be transferred and to know the victim's jitter.
    """

    white_box = True
    needs: ClassVar[type] = DifferentiablePolicy
    objective_type: type[Objective] = Deviation

    def __init__(
        self,
        threat: Threat,
        victim: Victim,
        rng: np.random.Generator,
        mask: Mask | None = None,
        surrogate: Victim | None = None,
    ) -> None:
        super().__init__(threat, victim, rng, mask)
        attacked = surrogate or victim
        if surrogate is not None and threat.knowledge not in ("off", "unknown"):
            raise UserError(
                f"an attack that is transferred cannot have {threat.knowledge!r} jitter, which is the victim's; "
                "take off or unknown"
            )
        self.policy, self.pyramids = attacked.policy, attacked.pyramids
        self.objective = self.objective_type(attacked)

    def begin(self, frames: Frames, observation: Observation) -> None:
        """A new look: what it shows, what may be changed of it, and what the policy would do."""
        self.clean, self.observation = tensors(frames, self.policy), observation
        self.allowed, eps = self.weights(self.clean), self.threat.eps
        self.least = {c: self.allowed[c] * (-f).clamp(min=-eps) for c, f in self.clean.items()}
        self.most = {c: self.allowed[c] * (1 - f).clamp(max=eps) for c, f in self.clean.items()}
        origins = self.draw(observation)
        self.objective.begin(self.clean, origins, observation)
        self.forwards += _count(origins)

    def propose(self, frames: Frames, observation: Observation) -> Frames:
        if self.threat.knowledge == "chosen":
            return self._worst_placed(frames, observation)
        self.begin(frames, observation)
        return self._moved(self._highest())

    def _highest(self) -> TensorFrames:
        """Of what the restarts find, under the same draws of the jitter; each that is compared costs one more look."""
        found = [self.climb() for _ in range(self.threat.restarts)]
        if len(found) == 1:
            return found[0]
        origins = self.draw(self.observation)
        return max(found, key=lambda change: self.loss(change, origins))

    def _worst_placed(self, frames: Frames, observation: Observation) -> Frames:
        """The attack on each of so many draws of the jitter, and the draw where it does most."""
        self._assumed = None
        worst, found = -np.inf, Frames()
        for place in _singly(self.draw(observation)):
            self._assumed = place
            self.begin(frames, observation)
            change = self._highest()
            loss = self.loss(change, place)
            if not loss <= worst:
                worst, found = loss, self._moved(change)
                self.chosen = {camera: places[0] for camera, places in place.items()}
        return found

    def _moved(self, change: Mapping[str, Tensor]) -> Frames:
        return {camera: (frame + change[camera]).cpu().numpy() for camera, frame in self.clean.items()}

    def climb(self) -> TensorFrames:
        """The change of every frame, within the bound (`within`)."""
        raise NotImplementedError

    def random_change(self, most: float = 1.0) -> TensorFrames:
        """Uniform within the bound, or within a smaller one."""
        eps = min(most, self.threat.eps)
        return self.within({c: self.drawn(eps, f.shape).to(f.device) for c, f in self.clean.items()})

    def drawn(self, eps: float, shape: Sequence[int]) -> Tensor:
        """Uniform numbers from -eps to eps."""
        return torch.from_numpy(self.rng.uniform(-eps, eps, shape)).float()

    def within(self, change: Mapping[str, Tensor]) -> TensorFrames:
        """The change, clipped to the bound, to the valid range and to what may be changed."""
        return {c: torch.clamp(moved, self.least[c], self.most[c]) for c, moved in change.items()}

    @torch.no_grad()
    def loss(self, change: Mapping[str, Tensor], origins: Origins) -> float:
        """The objective at a change, over some draws of the jitter."""
        self.forwards += _count(origins)
        moved = {camera: frame + change[camera] for camera, frame in self.clean.items()}
        return self.objective.loss(moved, origins, self.observation).item()

    def choose_place(self, frames: Frames, observation: Observation) -> tuple[float, float]:
        """Of the places where the frame is steepest, the one where the attack does most."""
        assert isinstance(self.mask, FreePatch)
        self.begin(frames, observation)
        _, slopes = self.gradient(self.random_change(BESIDE))  # at the frame itself, a deviation has no slope
        steepest = np.argsort(sum(patch_sums(slope.abs().sum(-1).cpu().numpy()) for slope in slopes.values()))[-PLACES:]
        worth, origins = dict[tuple[float, float], float](), self.draw(observation)
        for place in (patch_places()[index] for index in steepest.tolist()):
            self.mask.place = place
            self.begin(frames, observation)
            worth[place] = self.loss(self.climb(), origins)
        return max(worth, key=lambda place: worth[place])

    def gradient(self, change: Mapping[str, Tensor]) -> tuple[float, TensorFrames]:
        """The objective at a change, and its gradient; over fresh draws of the jitter, all in one pass."""
        origins = self.draw(self.observation)
        moved = {camera: (frame + change[camera]).requires_grad_() for camera, frame in self.clean.items()}
        loss = self.objective.loss(moved, origins, self.observation)
        gradients = torch.autograd.grad(loss, list(moved.values()))
        self.forwards += _count(origins)
        self.backwards += _count(origins)
        return loss.item(), dict(zip(moved, gradients, strict=True))


class FGSM(GradientAttack):
    """The fast gradient sign method (Goodfellow et al., 2015): one step of full size."""

    def climb(self) -> TensorFrames:
        """From beside the clean frame: at it, a deviation has no slope."""
        start = self.random_change()
        _, gradient = self.gradient(start)
        return self.within(
            {camera: start[camera] + 2 * self.threat.eps * slope.sign() for camera, slope in gradient.items()}
        )


class PGD(GradientAttack):
    """Projected gradient descent (Madry et al., 2018) with expectation over the jitter (Athalye et al., 2018).

    Maximises the squared deviation of the action chunk, in the mean over the jitter, from the clean one. Unless told
    more, the attacker knows how jitter is distributed, not how it falls: every step is over fresh draws.
    """

    relative_step = 2.5  # step size is relative_step * eps / steps

    def climb(self) -> TensorFrames:
        change, size = self.random_change(), self.relative_step * self.threat.eps / self.threat.steps
        for _ in range(self.threat.steps):
            _, gradient = self.gradient(change)
            change = self.within({c: change[c].add(slope.sign_(), alpha=size) for c, slope in gradient.items()})
        return change


class MAD(PGD):
    """PGD on the actions that are carried out before the next look, as they are carried out (Zhang et al., 2020)."""

    objective_type = ExecutedDeviation


class Features(PGD):
    """PGD on what the encoder makes of the frame, whatever the actions."""

    objective_type = FeatureDeviation
    needs = EncodingPolicy


class Targeted(PGD):
    """PGD that drives the gripper to another thing than the one that was asked for."""

    objective_type = Decoy
    own_only = True


class APGD(GradientAttack):
    """PGD with momentum and steps that are halved when they stop paying (Croce and Hein, 2020, Algorithm 1).

    As in AutoAttack's version for randomised defences, every gradient is over fresh draws of the jitter.
    """

    momentum = 0.75
    paying = 0.75  # of the steps since the last check must have raised the objective

    def climb(self) -> TensorFrames:
        size, change = 2 * self.threat.eps, self.random_change()
        loss, gradient = self.gradient(change)
        before, best, best_change, best_gradient = change, loss, change, gradient
        rises, halved, best_at_check = 0, True, best
        checks = _checks(self.threat.steps)
        for step in range(1, max(2, self.threat.steps)):
            ahead = self.within({c: change[c] + size * gradient[c].sign() for c in change})
            keep = self.momentum if step > 1 else 1.0
            moved = {
                c: change[c] + keep * (ahead[c] - change[c]) + (1 - keep) * (change[c] - before[c]) for c in change
            }
            before, change, last = change, self.within(moved), loss
            loss, gradient = self.gradient(change)
            rises += loss > last
            if loss > best:
                best, best_change, best_gradient = loss, change, gradient
            if step in checks:
                stale = rises < self.paying * (step - max((c for c in checks if c < step), default=0))
                if stale or (not halved and best == best_at_check):
                    size, halved, change, gradient, before = size / 2, True, best_change, best_gradient, best_change
                else:
                    halved = False
                rises, best_at_check = 0, best
        return best_change


def _checks(steps: int) -> list[int]:
    """After which steps the size is checked: at 22 % of all, then at shrinking distances, of at least 6 %."""
    places, distance = [0.0, 0.22], 0.22
    while places[-1] < 1:
        distance = max(distance - 0.03, 0.06)
        places.append(places[-1] + distance)
    return [int(np.ceil(place * steps)) for place in places[1:]]


def _count(origins: Origins) -> int:
    return max(len(places) for places in origins.values())


def _singly(origins: Origins) -> Iterator[Origins]:
    """Every draw by itself."""
    for draw in range(_count(origins)):
        yield {camera: places[min(draw, len(places) - 1)][None] for camera, places in origins.items()}
