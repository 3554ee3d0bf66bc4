"""Reinforcement learning by stable-baselines3 on the same token observations, for the same cards, as cloning."""

from mrvlm_sim.training.rl.features import TokenFeatures
from mrvlm_sim.training.rl.session import Reinforcement

__all__ = ["Reinforcement", "TokenFeatures"]
