"""A quick look at success during training."""

from collections.abc import Sequence
from contextlib import closing

import torch

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.tasks import make_env

TRAINING_EVALUATION_SEED = 999_983  # a suite seed of its own, so that no reported episode is looked at in training


def quick_success(policy: TrainedPolicy, environments: Sequence[str], episodes: int) -> float:
    """Rate of success over a few clean episodes of each environment, always the same ones."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = [_rate(policy, environment, episodes) for environment in environments]
    finally:
        torch.set_num_threads(threads)
    return sum(rates) / len(rates)


def _rate(policy: TrainedPolicy, environment: str, episodes: int) -> float:
    with closing(make_env(environment)) as env:
        records = [
            run_episode(env, environment, policy, "training", Condition(), TRAINING_EVALUATION_SEED, episode)
            for episode in range(episodes)
        ]
    return sum(record.success for record in records) / episodes
