"""Reinforcement learning that costs next to nothing, for the tests of it."""

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_card

from mrvlm_sim.agents.card import PolicyCard, PPORecipe, ReinforcementRecipe, SACRecipe
from mrvlm_sim.evaluation.periodic import quick_success
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.training.rl.envs import EncodedVecEnv, vector_env
from mrvlm_sim.training.rl.session import Reinforcement

BUDGET: dict[str, Any] = {
    "steps": 96, "environments": 2, "rollout": 16, "segment": 1, "batch": 16, "pretraining_scenes": 12,
    "pretraining_updates": 3, "encoder_updates": 2, "encoder_batch": 8,
}  # fmt: skip
RECIPE = PPORecipe(**BUDGET, epochs=2)
SAC_RECIPE = SACRecipe(**BUDGET, learning_starts=20, gradient_steps=1, replay=80)  # fills and goes round
BRIEF = "reach[max_steps=12]"
Weights = dict[str, torch.Tensor]


def rl_card(recipe: ReinforcementRecipe = RECIPE, **network: Any) -> PolicyCard:
    card = tiny_card(chunk=1, squashed=recipe.method == "sac", **network)
    return card.model_copy(update={"training": recipe, "execute": 1, "environments": ["reach"]})


def train(folder: Path, recipe: ReinforcementRecipe = RECIPE, processes: bool = False, **network: Any) -> Reinforcement:
    training = Reinforcement(rl_card(recipe, **network), BRIEF, folder, processes)
    training.run(lambda policy: quick_success(policy, [BRIEF], 1), lambda *_: None)
    return training


def make_eyes() -> EncodedVecEnv:
    """Two environments in this process, seen by an encoder that was not trained."""
    torch.manual_seed(0)
    card = rl_card()
    made = EncodedVecEnv(vector_env(BRIEF, card.cameras, 2, processes=False), PolicyNetwork(card.cameras, card.network))
    made.seed(0)
    return made


def same(one: Weights, other: Weights) -> bool:
    return all((one[name] == other[name]).all() for name in one)
