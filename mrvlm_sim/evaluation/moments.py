"""Single looks of clean episodes, on which attacks can be compared without running episodes."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import mujoco
import numpy as np
import torch

from mrvlm_sim.agents.policy import EpisodeStart, Policy, batch_of_one, requirements_of
from mrvlm_sim.metrics.attacks import DifferentiablePolicy, Victim
from mrvlm_sim.metrics.attacks.base import Moment, Origins, tensors
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv, set_state, simulator_state
from mrvlm_sim.tasks import make_env
from mrvlm_sim.wrappers import MultiResolutionTokens
from mrvlm_sim.wrappers.tokens import Frames

Note = Callable[[SuiteEnv], Any]


class _Watching:
    """A hook that changes nothing and remembers every look, and the state of the simulation in it."""

    def __init__(self, env: SuiteEnv) -> None:
        self.env = env
        self.moments: list[Moment] = []
        self.states: list[np.ndarray] = []

    def __call__(self, frames: Frames, observation: Observation) -> Frames:
        self.moments.append(Moment({camera: frame.copy() for camera, frame in frames.items()}, observation))
        self.states.append(simulator_state(self.env))
        return frames

    def noted(self, index: int, note: Note) -> Moment:
        """One of the looks, with what is noted of the scene as it was then."""
        set_state(self.env.model, self.env.data, self.states[index])
        mujoco.mj_forward(self.env.model, self.env.data)
        return self.moments[index]._replace(noted=note(self.env))


def sample_moments(
    policy: Policy, environment: str, count: int, seed: int, note: Note = lambda env: None
) -> list[Moment]:
    """Looks from as many clean episodes of a policy, so that they are independent, each at a random step."""
    needs, found = requirements_of(policy), list[Moment]()
    with closing(make_env(environment)) as env:
        for episode in range(count):
            hook = _Watching(env)
            jitter = generator(seed, environment, episode, "jitter")
            eyes = MultiResolutionTokens(env, needs.cameras, "sensor", hook, needs.frame_interval, jitter)
            observation, info = eyes.reset(seed=integer_seed(seed, environment, episode, "initial state"))
            stream = generator(seed, environment, episode, "policy")
            policy.reset([EpisodeStart(info["instruction"], stream, eyes.action_size, env)])
            over = False
            while not over:
                action = policy.act(batch_of_one(observation))[0].astype(np.float32)
                try:
                    observation, _, terminated, truncated, _ = eyes.step(action)
                except FloatingPointError:  # the simulation diverged; what was seen before counts
                    break
                over = terminated or truncated
            index = int(generator(seed, environment, episode, "look").integers(len(hook.moments)))
            found.append(hook.noted(index, note))
    return found


def redraws(victim: Victim, moment: Moment, draws: int, seed: int) -> Origins:
    """Fresh jitter for one look, always the same for the same seed."""
    rng = np.random.default_rng(seed)
    return {
        camera: pyramid.place(
            pyramid.jitter.stationary(rng, (draws, pyramid.levels, 2)), moment.observation.get(f"{camera}/gaze")
        )
        for camera, pyramid in victim.pyramids.items()
    }


@torch.no_grad()
def harm(victim: Victim, moment: Moment, attacked: Frames, origins: Origins) -> float:
    """How far the actions until the next look are from the clean ones under the same jitter: 0 to 1, mean over it."""
    policy = victim.policy
    assert isinstance(policy, DifferentiablePolicy)
    clean, now = (
        policy.action_chunks(tensors(frames, policy), origins, moment.observation)[:, : victim.executed].clamp(-1, 1)
        for frames in (moment.frames, attacked)
    )
    return float((now - clean).abs().mean()) / 2
