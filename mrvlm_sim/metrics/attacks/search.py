"""Black-box attacks: they ask the policy what it would do, and see no gradients."""

import copy
from typing import Any

import numpy as np
import torch

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.base import Attack, DifferentiablePolicy, Origins, tensors
from mrvlm_sim.sim.suite_env import Observation, decode_instruction
from mrvlm_sim.vision import cut, tokenise
from mrvlm_sim.wrappers.tokens import Frames

QUERIES = 10  # for every step of the budget, as a gradient step costs a forward and two forwards' worth of backward
STILL = 0.1  # actions below count as none, where only their signs are seen
SCHEDULE = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)  # of all queries, after which squares are halved in area


class Noise(Attack):
    """Random signs of full size: the control that every other attack must beat."""

    def propose(self, frames: Frames, observation: Observation) -> Frames:
        bound = self.threat.bound / 255
        return {c: f / 255 + bound * self.rng.choice([-1.0, 1.0], f.shape) for c, f in frames.items()}


class Search(Attack):
    """Asks the policy about frames, and keeps the one that moves its actions farthest; a new attack fills `change`."""

    knows = ("off", "known", "unknown")

    @property
    def queries(self) -> int:
        return QUERIES * self.threat.steps

    def propose(self, frames: Frames, observation: Observation) -> Frames:
        self.clean, self.observation = frames, observation
        self.truth = self.ask(frames)
        best = self.first()
        worth = self.worth(self.ask(self.held(best)))
        for query in range(1, self.queries):
            candidate = self.change(best, query / self.queries)
            found = self.worth(self.ask(self.held(candidate)))
            if self.better(found, worth):
                best, worth = candidate, found
        return {camera: frame / 255 for camera, frame in self.held(best).items()}

    def first(self) -> Frames:
        """A change to begin with, in sensor values."""
        return {c: self.threat.bound * self.rng.choice([-1, 1], frame.shape) for c, frame in self.clean.items()}

    def change(self, best: Frames, done: float) -> Frames:
        """The next change to be asked about, after so great a part of all queries."""
        raise NotImplementedError

    def worth(self, actions: np.ndarray) -> float:
        """Of what the policy answered; more is worse for it."""
        return float(np.square(actions - self.truth).mean())

    def better(self, found: float, worth: float) -> bool:
        return found > worth

    def held(self, change: Frames) -> Frames:
        """The frames with a change, as the policy would see them."""
        return {camera: self._held(frame, (frame + change[camera]) / 255) for camera, frame in self.clean.items()}

    @torch.no_grad()
    def ask(self, frames: Frames) -> np.ndarray:
        """The actions until the next look, clipped: (executed, A), in the mean over the jitter as far as it is known.

        Raises:
            UserError: the policy cannot be asked twice about one moment.
        """
        origins = self.draw(self.observation)
        self.forwards += max(len(places) for places in origins.values())
        if isinstance(self.policy, DifferentiablePolicy):
            chunks = self.policy.action_chunks(tensors(frames, self.policy), origins, self.observation)
            return chunks[:, : self.victim.executed].clamp(-1, 1).mean(0).cpu().numpy()
        return self._ask_copies(frames, origins)

    def _ask_copies(self, frames: Frames, origins: Origins) -> np.ndarray:
        answers = []
        for draw in range(max(len(places) for places in origins.values())):
            batch: dict[str, Any] = {name: value[None] for name, value in self.observation.items()}
            batch["instruction"] = [decode_instruction(self.observation["instruction"])]
            for camera, pyramid in self.pyramids.items():
                placed = origins[camera][min(draw, len(origins[camera]) - 1)]
                batch[f"{camera}/tokens"] = tokenise(cut(frames[camera], placed, pyramid), pyramid)[None]
                batch[f"{camera}/boxes"] = pyramid.told_boxes(placed)[None]
            try:
                asked: Any = copy.deepcopy(self.policy)
            except Exception as error:
                raise UserError(
                    f"{type(self.policy).__name__} cannot be copied to be asked what it would do ({error}); attack it "
                    "by noise, or by transfer from an arm that resembles it"
                ) from error
            answers.append(asked.act(batch)[0])
        return np.clip(np.mean(answers, axis=0), -1, 1)[None]


class BestOfNoise(Search):
    """The best of many random signs: what chance alone would find."""

    def change(self, best: Frames, done: float) -> Frames:
        return self.first()


class Square(Search):
    """Random squares of full size, ever smaller (Andriushchenko et al., 2020, for L-infinity)."""

    area = 0.8  # of the frame, at first

    def first(self) -> Frames:
        """Vertical stripes, the best beginning they found."""
        bound = self.threat.bound
        return {
            c: np.broadcast_to(bound * self.rng.choice([-1, 1], (1, f.shape[1], 3)), f.shape).copy()
            for c, f in self.clean.items()
        }

    def change(self, best: Frames, done: float) -> Frames:
        area = self.area / 2 ** sum(done > part for part in SCHEDULE)
        changed = {}
        for camera, frame in best.items():
            size = frame.shape[0]
            side = min(size, max(1, round(size * area**0.5)))
            y, x = self.rng.integers(0, size - side + 1, 2)
            changed[camera] = frame.copy()
            changed[camera][y : y + side, x : x + side] = self.threat.bound * self.rng.choice([-1, 1], (1, 1, 3))
        return changed


class HardLabel(Square):
    """The same random squares, told only which way every action goes: forwards, backwards or not.

    Whatever costs nothing is kept, so that the search wanders (as the boundary attack of Brendel et al., 2018, does).
    """

    def worth(self, actions: np.ndarray) -> float:
        return float((_ways(actions) != _ways(self.truth)).mean())

    def better(self, found: float, worth: float) -> bool:
        return found >= worth


def _ways(actions: np.ndarray) -> np.ndarray:
    return np.where(np.abs(actions) < STILL, 0, np.sign(actions))
