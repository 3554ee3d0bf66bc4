"""How fast reinforcement learning goes, and where its time goes: simulation, tokens, forward, backward."""

import time
from contextlib import closing

import numpy as np
import pandas as pd
import torch

from mrvlm_sim.agents.card import PolicyCard, ReinforcementRecipe
from mrvlm_sim.evaluation.bench_tasks import timed
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.tasks import make_task
from mrvlm_sim.training.rl.envs import Eyes, vector_env
from mrvlm_sim.training.rl.perception import Perception
from mrvlm_sim.training.rl.recipe import reinforcement_card
from mrvlm_sim.training.rl.session import make_ppo

ENVIRONMENT = "reach"
ARMS = ("uniform-256", "uniform-49", "pyramid-48-embedded", "pyramid-48-cross")
ENVIRONMENTS = 2  # side by side


def reinforcement(rollout: int) -> pd.DataFrame:
    """A line per arm, from one rollout of so many steps of two environments with all the updates that follow it."""
    return pd.DataFrame([{"arm": arm, **_measured(arm, rollout)} for arm in ARMS])


def _measured(arm: str, rollout: int) -> dict[str, str]:
    card = reinforcement_card(arm, ENVIRONMENT, "ppo", None, {})
    assert isinstance(card.training, ReinforcementRecipe)
    share = ENVIRONMENTS * rollout / (card.training.environments * card.training.rollout)
    recipe = card.training.model_copy(
        update={"environments": ENVIRONMENTS, "rollout": rollout, "batch": rollout, "segment": 1}
    )
    alone, spent = _rollout(card, recipe, processes=False)
    beside, _ = _rollout(card, recipe, processes=True)
    encoder = spent["encoder update"] * recipe.encoder_updates * share
    parts = {
        "simulation": spent["simulation"],
        "tokens": spent["looking"],
        "forward": spent["forward"] + encoder * spent["forward share"],
        "backward": encoder * (1 - spent["forward share"]) + spent["ppo"],
    }
    shares = {f"% {name}": f"{100 * seconds / sum(parts.values()):.0f}" for name, seconds in parts.items()}
    minibatches = recipe.epochs * ENVIRONMENTS * rollout / recipe.batch
    return {
        "steps/s": f"{alone:.0f}",
        "steps/s, 2 processes": f"{beside:.0f}",
        **shares,
        "encoder updates/s": f"{1 / spent['encoder update']:.1f}",
        "PPO updates/s": f"{minibatches / spent['ppo']:.0f}",
    }


def _rollout(card: PolicyCard, recipe: ReinforcementRecipe, processes: bool) -> tuple[float, dict[str, float]]:
    """Steps per second with no updates, and seconds of the parts; those of the simulation in this process only."""
    torch.manual_seed(0)
    network, spent = PolicyNetwork(card.cameras, card.network), {"forward": 0.0, "looking": 0.0, "ppo": 0.0, "all": 0.0}
    environments = vector_env(ENVIRONMENT, card.cameras, ENVIRONMENTS, processes)
    with closing(Eyes(environments, network)) as eyes:
        model = make_ppo(eyes, Perception(network, recipe, make_task(ENVIRONMENT)), recipe)
        eyes.reset()
        eyes.step(np.zeros((ENVIRONMENTS, 5), np.float32))  # warm-up: contexts, caches
        model.perception.scenes = eyes.take_frames()
        network.perceive = timed(network.perceive, spent, "forward")  # type: ignore[method-assign]
        if not processes:
            for wrapped in environments.unwrapped.envs:  # type: ignore[attr-defined]
                wrapped.env.look = timed(wrapped.env.look, spent, "looking")
        model.perception.learn = _learning(model.perception, spent)  # type: ignore[method-assign]
        model.train = timed(model.train, spent, "ppo")  # type: ignore[method-assign]
        started = time.perf_counter()
        model.learn(recipe.environments * recipe.rollout)
        spent["all"] = time.perf_counter() - started
    spent["ppo"] -= spent["lessons"]
    acting = spent["all"] - spent["ppo"] - spent["lessons"]
    spent["simulation"] = acting - spent["forward"] - spent["looking"]
    return recipe.environments * recipe.rollout / acting, spent


def _learning(perception: Perception, spent: dict[str, float]):  # type: ignore[no-untyped-def]
    """`Perception.learn` with its times: of one update, and the forward's share of it; its forwards count there."""
    learn = perception.learn

    def measured(updates, rng, rollout):  # type: ignore[no-untyped-def]
        before, started = spent["forward"], time.perf_counter()
        figures = learn(updates, rng, rollout)
        spent["lessons"] = time.perf_counter() - started
        spent["encoder update"] = spent["lessons"] / updates
        spent["forward share"] = (spent["forward"] - before) / spent["lessons"]
        spent["forward"] = before
        return figures

    return measured
