"""Policies without eyes: the scripted expert above, random and no-op below."""

from collections.abc import Sequence

import numpy as np

from mrvlm_sim.agents.policy import EpisodeStart, Observations
from mrvlm_sim.sim.env import ACTION_SIZE


class ScriptedExpert:
    """Acts on the true state of the simulation: the ceiling."""

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._envs = [episode.env for episode in episodes]

    def act(self, observations: Observations) -> np.ndarray:
        return np.stack([env.task.expert_action(env.scene) for env in self._envs])


class RandomPolicy:
    """Uniform actions: the floor."""

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._rngs = [episode.rng for episode in episodes]

    def act(self, observations: Observations) -> np.ndarray:
        return np.stack([rng.uniform(-1, 1, ACTION_SIZE) for rng in self._rngs])


class NoOpPolicy:
    """Does nothing: what succeeds by itself."""

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._batch = len(episodes)

    def act(self, observations: Observations) -> np.ndarray:
        return np.zeros((self._batch, ACTION_SIZE))
