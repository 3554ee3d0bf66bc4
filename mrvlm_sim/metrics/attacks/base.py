"""What all attacks share: the rules that they are held to, and what they can ask of a policy.

`Attack.__call__` owns the rules: it refuses what breaks the bound, keeps to the pixels that may be changed and to the
valid range, quantises to whole sensor values, as a camera would, and checks what is fed to the policy. A new attack
fills `propose`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks.regions import FreePatch, Mask
from mrvlm_sim.metrics.attacks.threat import KNOWLEDGE, Threat
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.wrappers.tokens import Frames

TensorFrames = dict[str, Tensor]  # camera -> float (S, S, 3) in [0, 1]
Origins = dict[str, np.ndarray]  # camera -> int64 (K, levels, 2), corners of the cutouts in K draws of the jitter


class Moment(NamedTuple):
    """What an attack is given in one look."""

    frames: Frames
    observation: Observation
    noted: Any = None  # what a `Prepared` attack wanted to know of the scene, too


@runtime_checkable
class DifferentiablePolicy(Protocol):
    """A policy that can be attacked white-box."""

    def action_chunks(
        self, frames: Mapping[str, Tensor], origins: Mapping[str, np.ndarray], observation: Observation
    ) -> Tensor:
        """Action chunks (K, chunk, action_size) for one observation under K jitters, differentiable to `frames`.

        `frames` are sensor frames (S, S, 3) in [0, 1], `origins` (K, levels, 2) the corners of the cutouts.
        """


@runtime_checkable
class EncodingPolicy(Protocol):
    """A policy whose encoder can be attacked, too."""

    def encodings(
        self, frames: Mapping[str, Tensor], origins: Mapping[str, np.ndarray], observation: Observation
    ) -> Tensor:
        """What the action head would read, (K, features), differentiable to `frames`; see `DifferentiablePolicy`."""


@dataclass(frozen=True)
class Victim:
    """A policy that is attacked, and its circumstances."""

    policy: object
    pyramids: Mapping[str, Pyramid]
    executed: int = 1  # actions of every chunk that are carried out before it looks again
    env: SuiteEnv | None = None  # for attackers that know what is where


def device_of(policy: object) -> torch.device:
    """Where a policy computes: its `device`, or that of its parameters; the CPU if it says neither."""
    named = getattr(policy, "device", None)
    if isinstance(named, torch.device):
        return named
    parameter = next(policy.parameters(), None) if isinstance(policy, torch.nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def tensors(frames: Frames, policy: object = None) -> TensorFrames:
    """Frames as a policy takes them for `action_chunks`, where it computes."""
    device = device_of(policy)
    return {c: torch.from_numpy(frame.astype(np.float32) / 255).to(device) for c, frame in frames.items()}


class Attack(ABC):
    """An attack on every camera that a policy sees, L-infinity of size `threat.eps` on the pixels of `mask`.

    Raises:
        UserError: it cannot know that much of the jitter.

    After a call, `chosen` says where the levels must lie, if the attacker may choose that; `largest`, the largest
    change so far in sensor values; `forwards` and `backwards`, what it has cost in passes of single observations.
    """

    white_box = False
    needs: ClassVar[type] = object  # protocol that the policy must fulfil
    knows: ClassVar[Sequence[str]] = KNOWLEDGE  # what it can know of the jitter
    own_only = False  # whether it takes an environment of this suite's own

    def __init__(self, threat: Threat, victim: Victim, rng: np.random.Generator, mask: Mask | None = None) -> None:
        if threat.knowledge not in self.knows:
            name, fitting = type(self).__name__, ", ".join(self.knows)
            raise UserError(f"{name} cannot have {threat.knowledge} jitter; it can have {fitting}")
        self.threat, self.victim, self.rng, self.mask = threat, victim, rng, mask
        self.policy, self.pyramids = victim.policy, victim.pyramids
        self.chosen: dict[str, np.ndarray] | None = None
        self._assumed: Origins | None = None  # what `draw` gives, if that is settled
        self.largest = self.forwards = self.backwards = 0
        self.deviations: list[float] = []  # of the actions, in every look

    def done(self) -> dict[str, float]:
        """What it did so far, and what that cost, as the record of an episode has it."""
        deviation = float(np.mean(self.deviations)) if self.deviations else 0.0
        counts = {"largest_change": self.largest, "forwards": self.forwards, "backwards": self.backwards}
        return counts | {"action_deviation": deviation}

    def __call__(self, frames: Frames, observation: Observation) -> Frames:
        """The attacked frames; never further than eps from the clean ones.

        Raises:
            ValueError: the attack proposed something that is not finite, of another shape, or further than eps.
            AssertionError: the bound is broken all the same.
        """
        clean = {camera: frame.copy() for camera, frame in frames.items()}  # whatever an attack does to its own
        if isinstance(self.mask, FreePatch) and self.mask.place is None:
            self.mask.place = self.choose_place(frames, observation)
        proposed = self.propose(frames, observation)
        attacked = {camera: self._held(frame, proposed[camera]) for camera, frame in clean.items()}
        self._note_deviation(clean, attacked, observation)
        return attacked

    @torch.no_grad()
    def _note_deviation(self, clean: Frames, attacked: Frames, observation: Observation) -> None:
        """As a part of the actions' range, under the jitter that there is; of policies that can be asked."""
        policy, origins = self.victim.policy, self.placed(observation)
        if not isinstance(policy, DifferentiablePolicy) or origins.keys() != clean.keys():
            return
        chunks = [policy.action_chunks(tensors(frames, policy), origins, observation) for frames in (clean, attacked)]
        did, does = (chunk[:, : self.victim.executed].clamp(-1, 1) for chunk in chunks)
        self.deviations.append(float((does - did).abs().mean()) / 2)

    def choose_place(self, frames: Frames, observation: Observation) -> tuple[float, float]:
        """Where to put a patch (u, v) that may lie anywhere, and stays there for the episode: at random."""
        u, v = self.rng.uniform(-1, 1, 2).tolist()
        return u, v

    @abstractmethod
    def propose(self, frames: Frames, observation: Observation) -> Frames:
        """Attacked frames, float (S, S, 3) in units of [0, 1], no further than eps from the clean ones.

        Rounding, the valid range and the pixels that may be changed are seen to afterwards.
        """

    def _held(self, clean: np.ndarray, proposed: np.ndarray) -> np.ndarray:
        bound = self.threat.bound
        if proposed.shape != clean.shape or not np.isfinite(proposed).all():
            wrong = f"shape {proposed.shape}" if proposed.shape != clean.shape else "values that are not finite"
            raise ValueError(f"{type(self).__name__} proposed {wrong}; an attack gives finite frames {clean.shape}")
        change = np.rint(proposed * 255) - clean
        if self.mask is not None:
            change[~self.mask(clean.shape[0])] = 0
        if (furthest := int(np.abs(change).max())) > np.ceil(255 * self.threat.eps - 1e-6):  # eps, rounded either way
            raise ValueError(
                f"{type(self).__name__} proposed a change of {furthest}/255, the bound is {bound}/255; "
                "an attack keeps within threat.eps by itself"
            )
        attacked = np.clip(clean + np.clip(change, -bound, bound), 0, 255).astype(np.uint8)
        largest = int(np.abs(attacked.astype(np.int16) - clean).max())
        if largest > bound:
            raise AssertionError(f"attack changed a pixel by {largest}/255, the bound is {bound}/255")
        self.largest = max(self.largest, largest)
        return attacked

    def placed(self, observation: Observation) -> Origins:
        """Where the levels lie in this look, as far as the wrapper says."""
        known = {camera: observation.get(f"{camera}/origins") for camera in self.victim.pyramids}
        placed = self.chosen or {camera: places for camera, places in known.items() if places is not None}
        return {camera: places[None] for camera, places in placed.items()}

    def draw(self, observation: Observation) -> Origins:
        """Where the levels lie as far as the attacker knows, in one draw or several."""
        if self._assumed is not None:
            return self._assumed
        count = self.threat.draws if self._random else 1
        return {name: self._draw(name, pyramid, observation, count) for name, pyramid in self.pyramids.items()}

    @property
    def _random(self) -> bool:
        jitters = any(p.jitter.amplitude > 0 or p.gaze == "random" for p in self.pyramids.values())
        return jitters and self.threat.knowledge in ("unknown", "chosen")

    def _draw(self, camera: str, pyramid: Pyramid, observation: Observation, count: int) -> np.ndarray:
        if self.threat.knowledge == "known":
            return observation[f"{camera}/origins"][None]
        offsets = np.zeros((count, pyramid.levels, 2))
        gaze = observation.get(f"{camera}/gaze") if pyramid.gaze in ("oracle", "policy") else None
        if self._random:
            offsets = pyramid.jitter.stationary(self.rng, offsets.shape)
            gaze = self.rng.uniform(-1, 1, (count, 2)) if pyramid.gaze == "random" else gaze
        return pyramid.place(offsets, gaze)

    def weights(self, frames: Mapping[str, Tensor]) -> TensorFrames:
        """1 where pixels may be changed and 0 elsewhere: (S, S, 1) for every camera."""
        return {camera: self._weights(frame.shape[0]).to(frame.device) for camera, frame in frames.items()}

    def _weights(self, size: int) -> Tensor:
        return torch.ones(size, size, 1) if self.mask is None else torch.from_numpy(self.mask(size)[..., None]).float()


class Prepared(ABC):
    """What attacks are, besides, that get ready on other episodes before their first one."""

    def note(self, env: SuiteEnv) -> Any:
        """What to remember of a scene that it prepares on, besides what is seen of it."""
        return None

    @abstractmethod
    def prepare(self, moments: Sequence[Moment]) -> None:
        """Get ready on looks from other episodes."""

    @abstractmethod
    def take_over(self, other: Self) -> None:
        """Be as ready as another one of its kind that was prepared."""
