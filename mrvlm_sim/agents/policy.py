"""What can be evaluated: anything with `reset` and `act`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv, decode_instruction
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.vision.eyes import gaze_size

CPU = "cpu"  # the torch device that every machine has
Observations = Mapping[str, Any]  # arrays with a leading axis of B episodes; `instruction` is a list of B strings


@dataclass(frozen=True)
class Requirements:
    """What a policy needs from the environment; compared with it before the first episode."""

    cameras: Mapping[str, Pyramid] = field(default_factory=dict)
    action_size: int | None = None  # with the gazes that it chooses; None: whatever the environment takes
    frame_interval: int = 1  # the policy looks at new tokens once in this many steps
    expert: bool = False  # the policy asks the environment's scripted expert


@dataclass(frozen=True)
class EpisodeStart:
    """What a policy is told when an episode begins; `rng` is its own stream of randomness."""

    instruction: str
    rng: np.random.Generator
    action_size: int
    env: SuiteEnv | None = None  # for the scripted expert, which may look at the true state; others should not


class Policy(Protocol):
    """The contract, batched over B episodes that run in step. A class attribute or property `requirements`
    (`Requirements`) may say what the policy needs; without it, it gets proprioception and instruction only."""

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        """Begin B new episodes."""

    def act(self, observations: Observations) -> np.ndarray:
        """Actions (B, action_size) in [-1, 1] for one step of every episode."""


@runtime_checkable
class Movable(Protocol):
    """A policy that can compute elsewhere, as every `torch.nn.Module` can. Attacks on it compute where it has its
    parameters, or where its `device` (`torch.device`) says."""

    def to(self, device: str) -> object:
        """Move to a torch device: cpu or cuda."""


def close(policy: Policy) -> None:
    """Let go of what a policy holds open, such as a connection; most hold nothing."""
    hang_up = getattr(policy, "close", None)
    if callable(hang_up):
        hang_up()


def requirements_of(policy: Policy) -> Requirements:
    """What the policy declares, or the default.

    Raises:
        UserError: it declares something that is not `Requirements`, or fails to say.
    """
    name = type(policy).__name__
    try:
        requirements = getattr(policy, "requirements", Requirements())
    except Exception as error:
        raise UserError(f"{name}.requirements failed: {type(error).__name__}: {error}") from error
    if not isinstance(requirements, Requirements):
        raise UserError(f"{name}.requirements must be Requirements, not {requirements!r}")
    if not isinstance(requirements.cameras, Mapping):
        raise UserError(f"{name}.requirements.cameras must map cameras to Pyramids, not {requirements.cameras!r}")
    return requirements


def check_compatible(policy: Policy, env: SuiteEnv) -> None:
    """Compare what the policy needs with what the environment gives.

    Raises:
        UserError: naming both sides.
    """
    needs, name = requirements_of(policy), type(policy).__name__
    for method in ("reset", "act"):
        if not callable(getattr(policy, method, None)):
            raise UserError(f"a policy has the methods reset and act; {name} has no {method}")
    for camera, pyramid in needs.cameras.items():
        if camera not in env.cameras:
            raise unknown_name(f"camera of {env.name}, asked for by {name},", camera, env.cameras)
        if not isinstance(pyramid, Pyramid):
            raise UserError(f"{name} asks for camera {camera!r} with {pyramid!r}; a Pyramid is expected")
    taken, gazes = env.action_size, gaze_size(needs.cameras)
    if needs.action_size not in (None, taken + gazes):
        besides = f" and {gazes} for the gaze" if gazes else ""
        raise UserError(f"{name} gives actions of size {needs.action_size}, {env.name} takes {taken}{besides}")
    if needs.expert and not env.has_expert:
        raise UserError(f"{env.name} has no scripted expert; name one on its card, or leave out {name}")
    if needs.frame_interval < 1:
        raise UserError(f"{name} has frame_interval {needs.frame_interval}; it must be at least 1")


def batch_of_one(observation: Observation) -> dict[str, Any]:
    """One observation as a batch, with the instruction as text."""
    batch: dict[str, Any] = {key: value[None] for key, value in observation.items()}
    batch["instruction"] = [decode_instruction(observation["instruction"])]
    return batch


def check_actions(actions: Any, shape: tuple[int, int]) -> np.ndarray:
    """The policy's answer as float (batch, action_size).

    Raises:
        ValueError: wrong shape, not finite, or beyond [-1, 1].
    """
    actions = np.asarray(actions)
    if actions.shape != shape:
        raise ValueError(f"act must return shape {shape}, it returned {actions.shape}")
    if not np.issubdtype(actions.dtype, np.number) or not np.isfinite(actions).all():
        raise ValueError(f"act must return finite numbers, it returned {actions.tolist()}")
    if np.abs(actions).max() > 1 + 1e-6:
        raise ValueError(f"act must stay in [-1, 1], it returned {actions.tolist()}")
    return actions
