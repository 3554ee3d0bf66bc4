"""Policies without eyes: the scripted expert above, random and no-op below."""

from collections.abc import Sequence

import numpy as np

from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements


class ScriptedExpert:
    """Acts on the true state of the simulation: the ceiling."""

    requirements = Requirements(expert=True)

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._envs = [episode.env for episode in episodes if episode.env is not None]

    def act(self, observations: Observations) -> np.ndarray:
        return np.stack([env.expert_action() for env in self._envs])


class RandomPolicy:
    """Uniform actions: the floor."""

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._episodes = episodes

    def act(self, observations: Observations) -> np.ndarray:
        return np.stack([episode.rng.uniform(-1, 1, episode.action_size) for episode in self._episodes])


class NoOpPolicy:
    """Does nothing: what succeeds by itself."""

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._shape = len(episodes), episodes[0].action_size

    def act(self, observations: Observations) -> np.ndarray:
        return np.zeros(self._shape)
