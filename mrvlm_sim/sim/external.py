"""Environments that other packages make: any Gymnasium environment on MuJoCo, with a card that says how to read it."""

from collections.abc import Callable, Collection, Mapping
from copy import copy
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.loading import load_object
from mrvlm_sim.sim.camera import Renderer
from mrvlm_sim.sim.card import ExternalCard
from mrvlm_sim.sim.suite_env import (
    Observation,
    SuiteEnv,
    check_render_mode,
    encode_instruction,
    instruction_space,
    simulator_state,
)

SHADOW_SIZE = 1024  # pixels; in software the usual 4096 cost ten times as much as the picture
STATE = "state"  # the name of a native observation that is a plain array


class ExternalEnv(SuiteEnv):
    """Another package's environment in this suite's terms, as its card describes.

    The observation holds `proprio`, `instruction` and everything that the environment gives by itself, under its own
    keys, or as `state` where that is a plain array: a policy that reads it sees the true state, and should say so.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    card: ExternalCard

    def __init__(self, card: ExternalCard, render_mode: str | None = "rgb_array", name: str | None = None) -> None:
        check_render_mode(render_mode)
        self.card, self.render_mode, self._name = card, render_mode, name or card.gymnasium_id
        self.inner = _make(card)
        base = check_mujoco(self.inner.unwrapped, card.gymnasium_id)
        for camera in card.cameras.values():
            known = [base.model.camera(i).name for i in range(base.model.ncam)]
            if camera not in known:
                raise unknown_name(f"camera of {card.gymnasium_id}", camera, known)
        self.renderer = external_renderer(base, card.cameras, card.turned)
        self.action_space, self._offset, self._scale = _actions(card, self.inner.action_space)
        native = as_dict_space(self.inner.observation_space)
        if taken := {"proprio", "instruction"} & set(native.spaces):
            raise UserError(f"{card.gymnasium_id} has observations called {', '.join(sorted(taken))}, as ours are")
        _check_proprio(card, native)
        size = sum(map(len, card.proprio.values()))
        self.observation_space = spaces.Dict(
            {
                **native.spaces,
                "proprio": spaces.Box(-np.inf, np.inf, (size,), np.float32),
                "instruction": instruction_space(),
            }
        )
        self.instruction = card.instruction
        self._native: Observation = {}
        self._solved, self._held, self._steps = False, 0, 0

    @property
    def model(self) -> mujoco.MjModel:
        return self.inner.unwrapped.model  # type: ignore[attr-defined]

    @property
    def data(self) -> mujoco.MjData:
        return self.inner.unwrapped.data  # type: ignore[attr-defined]

    @property
    def name(self) -> str:
        return self._name

    @property
    def has_expert(self) -> bool:
        return self.card.expert is not None

    def solved(self) -> bool:
        return self._solved

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        super().reset(seed=seed)
        native, info = self.inner.reset(seed=seed, options=options)
        self._native = as_dict(native)
        self._solved = _solved_at_reset(self.inner.unwrapped, self._native, info, self.card.success_key)
        self._held = self._steps = 0
        self._expert = load_object(self.card.expert)() if self.card.expert else None
        return self._observation(), self._info({}, success=False)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Apply one action (A,); values beyond [-1, 1] are clipped.

        Raises:
            ValueError: the action has another shape or is not finite.
        """
        action = np.asarray(action)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(f"an action is {self.action_size} finite numbers in [-1, 1], not {action!r}")
        scaled = np.clip(action, -1, 1) * self._scale + self._offset
        native, reward, terminated, truncated, info = self.inner.step(scaled.astype(self.inner.action_space.dtype))
        self._native, self._steps = as_dict(native), self._steps + 1
        self._solved = bool(self._success(info))
        self._held = self._held + 1 if self._solved else 0
        held_long = self.card.hold_steps is not None and self._held >= self.card.hold_steps
        over = terminated or held_long
        success = self._solved if terminated or self.card.hold_steps is None else held_long
        truncated = not over and (truncated or self._steps >= self.card.max_steps)
        return self._observation(), float(reward), over, truncated, self._info(info, success)

    def check(self) -> None:
        """Two starts from one seed, with another episode between them, must be the same."""
        starts = []
        for seed in (1, 2, 1):
            self.reset(seed=seed)
            starts.append(simulator_state(self))
            self.step(np.zeros(self.action_size))
        if not np.array_equal(starts[0], starts[2]):
            raise UserError(
                f"{self.name} starts differently from equal seeds, so arms would not meet the same episodes; "
                "wrap it so that reset(seed=...) determines the start, as mrvlm_sim/sim/metaworld.py does"
            )

    def expert_action(self) -> np.ndarray:
        assert self._expert is not None
        native = self._native[STATE] if set(self._native) == {STATE} else self._native
        action = (np.asarray(self._expert.get_action(native)) - self._offset) / self._scale
        return np.clip(action, -1, 1)

    def close(self) -> None:
        super().close()
        self.inner.close()

    def _success(self, info: Mapping[str, Any]) -> Any:
        key = self.card.success_key
        if key not in info:
            raise unknown_name(f"key in the info of {self.name} (success_key on its card)", key, info)
        return info[key]

    def _observation(self) -> Observation:
        read = [self._native[key][index] for key, index in self.card.proprio.items()]
        proprio = np.concatenate(read).astype(np.float32)
        return {**self._native, "proprio": proprio, "instruction": encode_instruction(self.instruction)}

    def _info(self, native: Mapping[str, Any], success: bool) -> dict[str, Any]:
        return {**native, "is_success": success, "held_steps": self._held, "instruction": self.instruction}


def check_mujoco(base: Any, name: str) -> Any:
    """The unwrapped environment itself.

    Raises:
        UserError: it has no MuJoCo `model` and `data`.
    """
    parts = getattr(base, "model", None), getattr(base, "data", None)
    if not isinstance(parts[0], mujoco.MjModel) or not isinstance(parts[1], mujoco.MjData):
        raise UserError(f"{name} has no MuJoCo `model` and `data`, so there are no cameras to look through")
    return base


def external_renderer(base: Any, cameras: Mapping[str, str] | None = None, turned: Collection[str] = ()) -> Renderer:
    """Cameras of an unwrapped environment on MuJoCo, with its goal markers drawn where they are."""
    base.model.vis.quality.shadowsize = min(base.model.vis.quality.shadowsize, SHADOW_SIZE)
    return Renderer(base.model, _state_with_markers(base), cameras, turned, sites=True)


def as_dict(native: Any) -> Observation:
    """An observation as a Dict; a plain array becomes its `state`."""
    return dict(native) if isinstance(native, Mapping) else {STATE: np.asarray(native)}


def as_dict_space(native: spaces.Space) -> spaces.Dict:
    """The space of `as_dict`'s observations.

    Raises:
        UserError: an observation within it is not a plain array.
    """
    named = native if isinstance(native, spaces.Dict) else spaces.Dict({STATE: native})
    for key, space in named.items():
        if not isinstance(space, spaces.Box):
            raise UserError(
                f"observations must be arrays, or a Dict of arrays; {key!r} is {type(space).__name__}: "
                "flatten it first, for example with gymnasium.wrappers.FlattenObservation"
            )
    return named


def _make(card: ExternalCard) -> gymnasium.Env:
    try:
        version(card.package)
    except PackageNotFoundError as error:
        raise UserError(
            f"{card.gymnasium_id} needs {card.package}, which is not installed. It brings a MuJoCo of its own, so give "
            f"it an environment of its own: bash setup.sh --suites, or there pip install '{card.install}'"
        ) from error
    try:
        # no TimeLimit of Gymnasium's: max_steps of the card says how long an episode is
        return gymnasium.make(card.gymnasium_id, max_episode_steps=-1, disable_env_checker=True, **card.arguments)
    except Exception as error:
        raise UserError(f"{card.gymnasium_id} cannot be made: {type(error).__name__}: {error}") from error


def _actions(card: ExternalCard, native: spaces.Space) -> tuple[spaces.Box, np.ndarray, np.ndarray]:
    """Our action space, and offset and scale of the way from it to the environment's own."""
    if not isinstance(native, spaces.Box) or len(native.shape) != 1 or not np.isfinite([native.low, native.high]).all():
        raise UserError(f"{card.gymnasium_id}: actions must be a bounded vector (Box), not {native}")
    scale, offset = (native.high - native.low) / 2, (native.high + native.low) / 2
    if card.action_scale is not None:
        if len(card.action_scale) != native.shape[0]:
            raise UserError(f"action_scale must have {native.shape[0]} numbers, not {list(card.action_scale)}")
        scale = np.minimum(card.action_scale, scale)
    return spaces.Box(-1.0, 1.0, native.shape, np.float32), offset, scale


def _check_proprio(card: ExternalCard, native: spaces.Dict) -> None:
    for key, index in card.proprio.items():
        if key not in native.spaces:
            raise unknown_name(f"observation of {card.gymnasium_id} (proprio on its card)", key, native.spaces)
        shape = native[key].shape or ()
        if len(shape) != 1 or max(index) >= shape[0]:
            raise UserError(f"proprio.{key} of {card.gymnasium_id}: {index} must lie within shape {shape}")


def _state_with_markers(base: Any) -> Callable[[], mujoco.MjData]:
    """What to draw: for Gymnasium-Robotics a copy, since putting its goal markers in place disturbs its next step."""
    model, move = base.model, getattr(base, "_render_callback", None)

    def plain() -> mujoco.MjData:
        if base.model is not model:
            raise RuntimeError("the environment made another MuJoCo model; to be looked at, it must keep the first")
        return base.data

    if move is None:
        return plain

    def moved() -> mujoco.MjData:
        data, base.data = plain(), copy(base.data)
        try:
            move()
            return base.data
        finally:
            base.data = data

    return moved


def _solved_at_reset(base: Any, native: Observation, info: Mapping[str, Any], key: str) -> bool:
    """Where the environment tells: in the info of its reset, or as Gymnasium-Robotics judges its goals."""
    if key in info:
        return bool(info[key])
    judge = getattr(base, "_is_success", None)
    return judge is not None and bool(judge(native["achieved_goal"], native["desired_goal"]))
