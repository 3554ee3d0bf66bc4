"""A quick look at success during training."""

import torch

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.evaluation.episode import Condition, run_episode
from mrvlm_sim.tasks import make_env

TRAINING_EVALUATION_SEED = 999_983  # a suite seed of its own, so that no reported episode is looked at in training


def quick_success(policy: TrainedPolicy, environment: str, episodes: int) -> float:
    """Rate of success over a few clean episodes, always the same ones."""
    env = make_env(environment)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        records = [
            run_episode(env, environment, policy, "training", Condition(), TRAINING_EVALUATION_SEED, episode)
            for episode in range(episodes)
        ]
    finally:
        torch.set_num_threads(threads)
        env.close()
    return sum(record.success for record in records) / episodes
