"""The wrapper that turns camera frames into jittered multi-resolution token observations."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.sim.external import as_dict, as_dict_space, check_mujoco, external_renderer
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv
from mrvlm_sim.vision import JitterProcess, Pyramid, cut, tokenise
from mrvlm_sim.wrappers.gaze import Gaze

Source = Literal["sensor", "nested"]
Frames = dict[str, np.ndarray]  # camera -> uint8 (S, S, 3)
FrameHook = Callable[[Frames, Observation], Frames]


class MultiResolutionTokens(gymnasium.Wrapper[Observation, np.ndarray, Any, np.ndarray]):
    """Adds `<camera>/tokens` uint8 (N, patch*patch*3) and `<camera>/boxes` float32 (N, 4) = u, v, h, level.

    Args:
        env: any environment whose unwrapped form has a MuJoCo `model` and `data`. An observation that is a plain array
            becomes the key `state` of a Dict.
        pyramids: the pyramid of each camera that is looked through. For each whose gaze the policy chooses, actions
            have two numbers more: where to look next.
        source: `nested` renders every level through its own frustum (fast); `sensor` renders the whole frame,
            lets `frame_hook` change it (attacks, corruptions), and cuts it (the reference).
        frame_hook: called with the sensor frames and the observation without pictures, before any cut. This holds
            `<camera>/origins` (levels, 2), where the levels will be cut, and `<camera>/gaze` (2,) where the eyes do
            not look straight ahead. An attribute `chosen` of the hook says where they are cut instead.
        frame_interval: look once in this many steps and repeat the last tokens in between, for policies that
            act in chunks. Jitter moves with every look.
        jitter_rng: where jitter comes from; the environment's own generator if not given.

    Raises:
        UserError: unknown camera or source, a hook without the sensor, or an environment without MuJoCo.

    >>> import gymnasium, mrvlm_sim
    >>> from mrvlm_sim.vision import Pyramid
    >>> env = gymnasium.make("mrvlm_sim/PickPlace-v0")
    >>> env = MultiResolutionTokens(env, {"wrist": Pyramid(frame_size=256, patch=16, grids=(4, 4, 4))})
    >>> observation, info = env.reset(seed=0)
    >>> observation["wrist/tokens"].shape, observation["wrist/boxes"].shape
    ((48, 768), (48, 4))
    >>> env.close()
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, np.ndarray],
        pyramids: Mapping[str, Pyramid],
        source: Source = "nested",
        frame_hook: FrameHook | None = None,
        frame_interval: int = 1,
        jitter_rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(env)
        base = check_mujoco(env.unwrapped, type(env.unwrapped).__name__)
        self.renderer = base.renderer if isinstance(base, SuiteEnv) else external_renderer(base)
        for camera in pyramids:
            if camera not in self.renderer.cameras:
                raise unknown_name("camera", camera, self.renderer.cameras)
        if source not in ("sensor", "nested"):
            raise unknown_name("source", source, ("sensor", "nested"))
        if frame_hook is not None and source != "sensor":
            raise UserError("a frame_hook changes sensor frames, so it needs source='sensor', not 'nested'")
        if frame_interval < 1:
            raise UserError(f"frame_interval must be at least 1, not {frame_interval}")
        self.pyramids, self.source = dict(pyramids), source
        self.frame_hook, self.frame_interval, self.jitter_rng = frame_hook, frame_interval, jitter_rng
        self.gaze = Gaze(self.pyramids, base)
        self.action_space = self.gaze.action_space(env.action_space)  # type: ignore[arg-type]
        self.observation_space = _with_tokens(as_dict_space(env.observation_space), self.pyramids)  # type: ignore[assignment]
        self.views: dict[str, list[np.ndarray]] = {}  # what was last seen, level by level
        self.origins: dict[str, np.ndarray] = {}
        self._steps = 0
        self._seen: Observation = {}

    @property
    def action_size(self) -> int:
        """How many numbers an action has, gaze included."""
        return self.action_space.shape[0]  # type: ignore[index]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        rng = self.jitter_rng if self.jitter_rng is not None else self.env.unwrapped.np_random
        return self.look_afresh(as_dict(observation), rng), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(self.gaze.take(action))
        self._steps += 1
        if self._steps % self.frame_interval == 0 or terminated or truncated:
            observation = self.look(as_dict(observation))
        else:
            observation = as_dict(observation) | self._seen
        return observation, float(reward), terminated, truncated, info

    def close(self) -> None:
        self.renderer.close()
        super().close()

    def look_afresh(self, observation: Observation, rng: np.random.Generator) -> Observation:
        """Look for the first time, with jitter that begins anew: as after a reset."""
        self._jitter = {name: JitterProcess(p.jitter, p.levels, rng) for name, p in self.pyramids.items()}
        self.gaze.begin(rng)
        self._steps = 0
        return self.look(observation)

    def look(self, observation: Observation) -> Observation:
        """Look anew, with the next jitter: the observation with fresh tokens and boxes."""
        gazes = {name: self.gaze.point(name) for name in self.pyramids}
        self.origins = {name: p.place(self._jitter[name].next(), gazes[name]) for name, p in self.pyramids.items()}
        turned = {f"{name}/gaze": gaze for name, gaze in gazes.items() if gaze is not None}
        placed = {f"{name}/origins": origins for name, origins in self.origins.items()}
        self.views = self._nested() if self.source == "nested" else self._cut(observation | turned | placed)
        self._seen = {}
        for name, pyramid in self.pyramids.items():
            self._seen[f"{name}/tokens"] = tokenise(self.views[name], pyramid)
            self._seen[f"{name}/boxes"] = pyramid.told_boxes(self.origins[name])
        return observation | self._seen

    def _nested(self) -> dict[str, list[np.ndarray]]:
        return {
            name: self.renderer.views(name, pyramid.boxes(self.origins[name]), pyramid.view_sizes)
            for name, pyramid in self.pyramids.items()
        }

    def _cut(self, observation: Observation) -> dict[str, list[np.ndarray]]:
        frames = {name: self.renderer.frame(name, pyramid.frame_size) for name, pyramid in self.pyramids.items()}
        if self.frame_hook is not None:
            frames = self.frame_hook(frames, observation)
            self.origins |= getattr(self.frame_hook, "chosen", None) or {}
        return {name: cut(frames[name], self.origins[name], p) for name, p in self.pyramids.items()}


def _with_tokens(space: spaces.Dict, pyramids: dict[str, Pyramid]) -> spaces.Dict:
    added: dict[str, spaces.Space] = {}
    for name, pyramid in pyramids.items():
        low = np.tile(np.array([-1, -1, 0, 0], np.float32), (pyramid.tokens, 1))
        high = np.tile(np.array([1, 1, 1, pyramid.levels - 1], np.float32), (pyramid.tokens, 1))
        added[f"{name}/tokens"] = spaces.Box(0, 255, (pyramid.tokens, pyramid.patch**2 * 3), np.uint8)
        added[f"{name}/boxes"] = spaces.Box(low, high, dtype=np.float32)
    return spaces.Dict({**space.spaces, **added})
