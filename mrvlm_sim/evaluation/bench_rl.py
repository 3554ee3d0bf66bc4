"""How fast reinforcement learning goes, and where its time goes: simulation, tokens, the encoder both ways, PPO."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pandas as pd
import torch

from mrvlm_sim.agents.card import PolicyCard, PPORecipe
from mrvlm_sim.evaluation.bench_tasks import timed
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.tasks import make_task
from mrvlm_sim.training.rl.algorithms import EncoderPPO, make_algorithm
from mrvlm_sim.training.rl.auxiliary import LandmarkRegression
from mrvlm_sim.training.rl.envs import EncodedVecEnv, vector_env
from mrvlm_sim.training.rl.pretraining import random_scenes
from mrvlm_sim.training.rl.recipe import reinforcement_card

ENVIRONMENT = "reach"
ARMS = ("uniform-256", "uniform-49", "pyramid-48-embedded", "pyramid-48-cross")
ENVIRONMENTS = 2  # side by side
SCENES = 40  # of the encoder's own
PARTS = ("simulation", "tokens", "forward", "backward", "ppo")  # forward and backward: of the encoder
Seconds = dict[str, float]


def reinforcement(rollout: int) -> pd.DataFrame:
    """A line per arm, from one rollout of so many steps of two environments, with its part of the recipe's updates."""
    return pd.DataFrame([{"arm": arm, **_measured(arm, rollout)} for arm in ARMS])


def _measured(arm: str, rollout: int) -> dict[str, str]:
    card = reinforcement_card(arm, ENVIRONMENT, "ppo", None, {})
    assert isinstance(card.training, PPORecipe)
    share = ENVIRONMENTS * rollout / (card.training.environments * card.training.rollout)
    changed = {"environments": ENVIRONMENTS, "rollout": rollout, "batch": ENVIRONMENTS * rollout, "segment": 1}
    recipe = card.training.model_copy(update=changed)
    alone, beside = (_rollout(card, recipe, processes) for processes in (False, True))
    spent = {part: alone[part] for part in PARTS}
    spent["forward"] += share * alone["updates' forward"]
    spent["backward"] = share * (alone["updates"] - alone["updates' forward"])
    return {
        "steps/s": f"{ENVIRONMENTS * rollout / alone['acting']:.0f}",
        "steps/s, 2 processes": f"{ENVIRONMENTS * rollout / beside['acting']:.0f}",
        **{f"% {part}": f"{100 * spent[part] / sum(spent.values()):.0f}" for part in PARTS},
        "encoder updates/s": f"{recipe.encoder_updates / alone['updates']:.1f}",
        "PPO updates/s": f"{recipe.epochs / alone['ppo updates']:.0f}",
    }


def _rollout(card: PolicyCard, recipe: PPORecipe, processes: bool) -> Seconds:
    """Seconds of one rollout's parts; what the simulation spends is only known of environments in this process."""
    torch.manual_seed(0)
    network = PolicyNetwork(card.cameras, card.network)
    environments = vector_env(ENVIRONMENT, card.cameras, ENVIRONMENTS, processes)
    with closing(EncodedVecEnv(environments, network)) as encoded:
        model = make_algorithm(encoded, LandmarkRegression(network, recipe, make_task(ENVIRONMENT)), recipe)
        encoded.reset()  # warm-up: contexts, caches
        assert isinstance(model, EncoderPPO)
        model.regression.scenes = random_scenes(ENVIRONMENT, card.cameras, SCENES, 0, workers=0)
        spent = _watched(model, environments.unwrapped.envs if not processes else [])  # type: ignore[attr-defined]
        started = time.perf_counter()
        model.learn(recipe.environments * recipe.rollout)
        everything = time.perf_counter() - started
    spent["acting"] = everything - spent["training"]
    spent["ppo updates"] = spent["training"] - spent["updates"]
    spent["ppo"] = spent["ppo updates"] + spent["acting"] - spent["steps"] - spent["forward"]
    spent["simulation"] = spent["steps"] - spent["tokens"]
    return spent


def _watched(model: EncoderPPO, environments: list[Any]) -> Seconds:
    """What is going to be spent on which part of the model's learning."""
    spent = dict.fromkeys(("steps", "tokens", "forward", "training", "updates", "updates' forward", "backward"), 0.0)
    spent |= {"simulation": 0.0, "ppo": 0.0}
    encoded, network = model.encoded, model.encoded.network
    encoded.venv.step_wait = timed(encoded.venv.step_wait, spent, "steps")  # type: ignore[method-assign]
    encoded._see = timed(encoded._see, spent, "forward")  # type: ignore[method-assign]
    for environment in environments:
        eyes = environment.env.env
        eyes.look = timed(eyes.look, spent, "tokens")
    perceive = network.perceive

    def learning(learn: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            network.perceive = timed(perceive, spent, "updates' forward")  # type: ignore[method-assign]
            try:
                return learn(*arguments)
            finally:
                network.perceive = perceive  # type: ignore[method-assign]

        return timed(watched, spent, "updates")

    model.regression.learn = learning(model.regression.learn)  # type: ignore[method-assign]
    model.train = timed(model.train, spent, "training")  # type: ignore[method-assign]
    return spent
