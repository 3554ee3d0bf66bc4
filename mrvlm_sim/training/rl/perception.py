"""The encoder's lessons: where things are, in scenes looked at beforehand and in rollouts; the simulation knows.

The policy's gradient alone is too thin a signal to learn to see from (Jaderberg et al., "Reinforcement learning with
unsupervised auxiliary tasks", 2017): the encoder learns by this alone, and the actor from what it makes of the tokens.
"""

import numpy as np
import torch

from mrvlm_sim.agents.card import ReinforcementRecipe
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.sim.env import Task
from mrvlm_sim.sim.suite_env import encode_instruction
from mrvlm_sim.training.bc import RELABELLED, landmark_loss
from mrvlm_sim.training.rl.envs import Frames
from mrvlm_sim.training.rl.features import network_inputs
from mrvlm_sim.training.trainer import make_optimisers, schedule


class Perception:
    """Teaches a network where the landmarks are."""

    scenes: Frames  # that it can always be shown again, to be set before it learns

    def __init__(self, network: PolicyNetwork, recipe: ReinforcementRecipe, task: Task) -> None:
        self.network, self.recipe, self.task = network, recipe, task
        rollouts = recipe.steps // (recipe.environments * recipe.rollout)
        self.planned, self.updates = recipe.first_updates + rollouts * recipe.encoder_updates, 0
        self.optimisers = make_optimisers(network, recipe)
        self._peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]

    def learn(self, updates: int, rng: np.random.Generator, rollout: Frames | None = None) -> dict[str, float]:
        """Some updates, half of every batch from the rollout if there is one; returns mean errors."""
        self.network.train()
        figures = np.array([self._update(self._batch(rng, rollout), rng) for _ in range(updates)])
        loss, named = np.nanmean(figures, axis=0).tolist()
        return {"loss": loss, "named_mm": named}

    def _batch(self, rng: np.random.Generator, rollout: Frames | None) -> Frames:
        size = self.recipe.encoder_batch
        sources = [(self.scenes, size)] if rollout is None else [(self.scenes, size - size // 2), (rollout, size // 2)]
        drawn = [(frames, rng.integers(len(frames["landmarks"]), size=count)) for frames, count in sources]
        return {name: np.concatenate([frames[name][chosen] for frames, chosen in drawn]) for name in self.scenes}

    def _update(self, batch: Frames, rng: np.random.Generator) -> tuple[float, float]:
        for optimiser, peaks in zip(self.optimisers, self._peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(min(1.0, self.updates / self.planned))
        self.updates += 1
        some = round(RELABELLED * self.recipe.encoder_batch)
        said, batch["landmarks"][:some] = self.task.relabel(batch["landmarks"][:some], rng)
        batch["instruction"][:some] = [encode_instruction(text) for text in said]
        tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
        true = tensors.pop("landmarks")
        with torch.autocast("cpu", torch.bfloat16):
            _, found = self.network.perceive(*network_inputs(self.network, tensors))
        loss = landmark_loss(found, true)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        named = (found.detach() - true)[:, 0].norm(dim=-1)
        return loss.item(), 1000 * named[some:].nanmean().item()
