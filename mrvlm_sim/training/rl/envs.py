"""The environments of reinforcement learning: side by side, with dense reward, seen through an arm's eyes.

The encoder runs once a step, in batches over all environments, and what it makes of the tokens is what the algorithm
of stable-baselines3 stores: its epochs then cost next to nothing. (The encoder learns between rollouts, so the first
step of a rollout is seen with what it knew before.)
"""

import signal
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from mrvlm_sim.errors import UserError
from mrvlm_sim.gl import one_render_thread
from mrvlm_sim.models import NetworkConfig, PolicyNetwork
from mrvlm_sim.models.heads import LANDMARK_SCALE, feature_size
from mrvlm_sim.seeding import integer_seed
from mrvlm_sim.sim.env import ACTION_SIZE, PROPRIO_SIZE, ManipulationEnv
from mrvlm_sim.sim.sight import landmark_places
from mrvlm_sim.tasks import make_own_env, split_settings
from mrvlm_sim.tasks.tabletop import LANDMARKS
from mrvlm_sim.training.rl.features import network_inputs
from mrvlm_sim.vision import Pyramid, shown_in
from mrvlm_sim.vision.eyes import gaze_size
from mrvlm_sim.wrappers import MultiResolutionTokens

Frames = dict[str, np.ndarray]  # observations of the environments, one after the other: (frames, ...)
PROBED = 200  # random steps


class WithLandmarks(gymnasium.ObservationWrapper):
    """Adds what only the critic and the encoder's lessons may know.

    `landmarks` float32 (K, 3) in metres, NaN where there is none, and `<camera>/shown` bool (K, N): which tokens show
    which of them.
    """

    def __init__(self, env: MultiResolutionTokens, task_env: ManipulationEnv) -> None:
        super().__init__(env)
        self.eyes, self.task_env = env, task_env
        known: dict[str, spaces.Space] = {"landmarks": spaces.Box(-np.inf, np.inf, (LANDMARKS, 3), np.float32)}
        for camera, pyramid in env.pyramids.items():
            known[f"{camera}/shown"] = spaces.Box(0, 1, (LANDMARKS, pyramid.tokens), np.bool_)
        assert isinstance(env.observation_space, spaces.Dict)
        self.observation_space = spaces.Dict({**env.observation_space.spaces, **known})

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        landmarks = self.task_env.task.landmarks(self.task_env.scene)
        known = {"landmarks": landmarks}
        for camera, pyramid in self.eyes.pyramids.items():
            places = landmark_places(self.task_env.scene, camera, landmarks)
            known[f"{camera}/shown"] = shown_in(places, pyramid.token_boxes(self.eyes.origins[camera]))
        return observation | known


class EndsWhenItDiverges(gymnasium.Wrapper):
    """Cuts an episode short whose simulation diverges, at what was last observed and at the worst of dense rewards: one
    such must not end a training."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._last, info = self.env.reset(seed=seed, options=options)
        return self._last, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            self._last, reward, terminated, truncated, info = self.env.step(action)
        except FloatingPointError:
            return self._last, -1.0, False, True, {"is_success": False, "diverged": True}
        return self._last, float(reward), terminated, truncated, info


def training_env(environment: str, cameras: Mapping[str, Pyramid]) -> gymnasium.Env:
    """One environment with dense reward, tokens and landmarks."""
    own = make_own_env(rewarded(environment))
    return EndsWhenItDiverges(WithLandmarks(MultiResolutionTokens(own, cameras), own))


def check_network(config: NetworkConfig, cameras: Mapping[str, Pyramid], environment: str) -> None:
    """
    Raises:
        UserError: the network's inputs or outputs are not those of the suite's environments, naming both sides.
    """
    given = {"proprio_size": PROPRIO_SIZE, "action_size": ACTION_SIZE + gaze_size(cameras), "landmarks": LANDMARKS}
    for name, size in given.items():
        if getattr(config, name) != size:
            raise UserError(f"the arm's network has {name} = {getattr(config, name)}, {environment} gives {size}")


def rewarded(environment: str) -> str:
    """The environment with its dense reward, unless its settings say which."""
    name, settings = split_settings(environment)
    if "reward" in settings:
        return environment
    return f"{environment[:-1]};reward=dense]" if settings else f"{name}[reward=dense]"


class Processes(SubprocVecEnv):
    """Environments in processes of their own, which are ended without being asked: one that died never answers."""

    def close(self) -> None:
        if not self.closed:
            for process, remote in zip(self.processes, self.remotes, strict=True):
                process.terminate()
                process.join()
                remote.close()
            self.closed = True


def vector_env(environment: str, cameras: Mapping[str, Pyramid], count: int, processes: bool) -> VecEnv:
    """So many environments side by side, each in a process of its own or all in this one."""
    if processes:
        return VecMonitor(Processes([partial(_in_process, environment, dict(cameras))] * count, "spawn"))
    return VecMonitor(DummyVecEnv([partial(training_env, environment, cameras)] * count))


def _in_process(environment: str, cameras: Mapping[str, Pyramid]) -> gymnasium.Env:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that trains
    one_render_thread()
    return training_env(environment, cameras)


def probe(environment: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of proprioception (P,) under random actions.

    Raises:
        UserError: the environment gives no reward to learn from: always the same, or one that is not finite.
    """
    env, rewards, proprio = make_own_env(rewarded(environment)), list[float](), list[np.ndarray]()
    rng, over = np.random.default_rng(seed), True
    for step in range(PROBED):
        if over:
            env.reset(seed=integer_seed(seed, environment, step, "probe"))
        try:
            observation, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_size))
        except FloatingPointError:
            over = True
            continue
        over = terminated or truncated
        rewards.append(reward)
        proprio.append(observation["proprio"])
    env.close()
    if not np.isfinite(rewards).all() or np.ptp(rewards) == 0:
        raise UserError(
            f"{environment} has no reward to learn from: {PROBED} random steps gave {min(rewards):g} to "
            f"{max(rewards):g}; take reward=dense, or give its task a reward that tells near from far"
        )
    return np.mean(proprio, axis=0), np.std(proprio, axis=0) + 1e-3


class EncodedVecEnv(VecEnvWrapper):
    """What the encoder makes of tokens as `features`, for the actor, and the truth as `truth`, for the critic.

    All frames are kept until `take_frames` or `forget`. `interrupted` is asked in every step, and ends it as
    KeyboardInterrupt.
    """

    interrupted: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, venv: VecEnv, network: PolicyNetwork) -> None:
        config = network.config
        self.truth_size = LANDMARKS * 4 + config.proprio_size
        sizes = {"features": feature_size(config), "truth": self.truth_size}
        seen: dict[str, spaces.Space] = {
            n: spaces.Box(-np.inf, np.inf, (size,), np.float32) for n, size in sizes.items()
        }
        super().__init__(venv, spaces.Dict(seen))
        self.network, self._frames = network, list[dict[str, np.ndarray]]()

    def reset(self) -> dict[str, np.ndarray]:
        return self._see(self.venv.reset())

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, dones, infos = self.venv.step_wait()
        if self.interrupted():  # not earlier: whoever is asked for a step must be heard, or closing would wait for ever
            raise KeyboardInterrupt
        for info in infos:
            if (last := info.get("terminal_observation")) is not None:  # only the critic is asked about it
                blind = np.zeros(feature_size(self.network.config), np.float32)
                batch = {name: values[None] for name, values in last.items()}
                info["terminal_observation"] = {"features": blind, "truth": self._truth(batch)[0]}
        return self._see(observations), rewards, dones, infos

    def take_frames(self) -> Frames:
        """All that was seen since the last call."""
        frames = self._frames
        self.forget()
        return {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]}

    def forget(self) -> None:
        """Keep nothing of what was seen."""
        self._frames = []

    @torch.inference_mode()
    def _see(self, observations: Any) -> dict[str, np.ndarray]:
        self._frames.append(observations)
        tensors = {name: torch.from_numpy(values) for name, values in observations.items()}
        seen = self.network.perceive(*network_inputs(self.network, tensors))
        return {"features": seen.features.numpy(), "truth": self._truth(observations)}

    def _truth(self, observations: Mapping[str, np.ndarray]) -> np.ndarray:
        """Landmarks, in LANDMARK_SCALE and 0 where there is none, which there are, and proprioception."""
        landmarks = observations["landmarks"]
        there = np.isfinite(landmarks).all(axis=-1)
        placed = np.where(there[..., None], landmarks / LANDMARK_SCALE, 0)
        proprio = self.network.normalise(torch.from_numpy(observations["proprio"])).numpy()
        return np.concatenate([placed.reshape(len(there), -1), there, proprio], axis=1).astype(np.float32)
