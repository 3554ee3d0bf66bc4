"""PPO and SAC of stable-baselines3 on encoded observations, whose encoder learns between rollouts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer

from mrvlm_sim.agents.card import PPORecipe, ReinforcementRecipe, SACRecipe
from mrvlm_sim.training.rl.actor_critic import ActorCritic, SquashedActorCritic
from mrvlm_sim.training.rl.auxiliary import LandmarkRegression
from mrvlm_sim.training.rl.envs import EncodedVecEnv

State = dict[str, Any]
REPLAYED = ("actions", "rewards", "dones", "timeouts")


class EncoderLearns(BaseAlgorithm):
    """What both algorithms have beside stable-baselines3's own."""

    regression: LandmarkRegression
    encoded: EncodedVecEnv
    recipe: ReinforcementRecipe
    errors: dict[str, float]  # of the encoder, after the last rollout

    def teach(self) -> None:
        """The encoder learns where things are from the frames since it last did."""
        rng = np.random.default_rng([self.recipe.seed, self.num_timesteps])
        self.errors = self.regression.learn(self.recipe.encoder_updates, rng, self.encoded.take_frames())
        for name, value in self.errors.items():
            self.logger.record(f"encoder/{name}", value)

    def state(self) -> State:
        """All that the next segment depends on, but for the encoder."""
        names, variables = self._get_torch_save_params()
        parameters = {name: _attribute(self, name).state_dict() for name in names}
        return {
            "parameters": parameters,
            "variables": {name: _attribute(self, name).detach().clone() for name in variables},
            "steps": self.num_timesteps,
            "updates": self._n_updates,
        }

    def load_state(self, state: State) -> None:
        """Go on from a state that was saved."""
        self.set_parameters(state["parameters"], exact_match=True)
        for name, value in state["variables"].items():
            _attribute(self, name).data.copy_(value)
        self.num_timesteps, self._n_updates = state["steps"], state["updates"]


class EncoderPPO(EncoderLearns, PPO):
    """The encoder learns after actor and critic have."""

    def train(self) -> None:
        super().train()
        self.teach()


class EncoderSAC(EncoderLearns, SAC):
    """The encoder learns after every rollout; what is replayed is what it made of the tokens then."""

    replay_buffer: DictReplayBuffer

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        super().train(gradient_steps, batch_size)
        if self.num_timesteps % (self.recipe.environments * self.recipe.rollout) == 0:
            self.teach()

    def state(self) -> State:
        buffer, replayed = self.replay_buffer, dict[str, Any]()
        end = buffer.buffer_size if buffer.full else buffer.pos
        for name in REPLAYED:
            replayed[name] = torch.from_numpy(getattr(buffer, name)[:end])
        for kind in ("observations", "next_observations"):
            replayed[kind] = {name: torch.from_numpy(a[:end]) for name, a in getattr(buffer, kind).items()}
        return super().state() | {"replayed": replayed, "position": buffer.pos, "full": buffer.full}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        buffer, replayed = self.replay_buffer, state["replayed"]
        buffer.pos, buffer.full = state["position"], state["full"]
        for name in REPLAYED:
            getattr(buffer, name)[: len(replayed[name])] = replayed[name].numpy()
        for kind in ("observations", "next_observations"):
            for name, values in replayed[kind].items():
                getattr(buffer, kind)[name][: len(values)] = values.numpy()


def make_ppo(encoded: EncodedVecEnv, recipe: PPORecipe) -> EncoderPPO:
    """PPO with the settings of a recipe."""
    return EncoderPPO(
        ActorCritic, encoded, learning_rate=recipe.policy_rate, n_steps=recipe.rollout, batch_size=recipe.batch,
        n_epochs=recipe.epochs, gamma=recipe.discount, gae_lambda=recipe.gae_lambda, clip_range=recipe.clip_range,
        ent_coef=recipe.entropy, seed=recipe.seed, device="cpu",
        policy_kwargs={"hidden": 2 * encoded.network.config.width, "log_std_init": recipe.log_std},
    )  # fmt: skip


def make_sac(encoded: EncodedVecEnv, recipe: SACRecipe) -> EncoderSAC:
    """SAC with the settings of a recipe."""
    return EncoderSAC(
        SquashedActorCritic, encoded, learning_rate=recipe.policy_rate, buffer_size=recipe.replay,
        learning_starts=recipe.learning_starts, batch_size=recipe.batch, gamma=recipe.discount,
        gradient_steps=recipe.gradient_steps, seed=recipe.seed, device="cpu",
        policy_kwargs={"hidden": 2 * encoded.network.config.width},
    )  # fmt: skip


MAKERS: dict[type[ReinforcementRecipe], Callable[..., EncoderLearns]] = {PPORecipe: make_ppo, SACRecipe: make_sac}


def make_algorithm(
    encoded: EncodedVecEnv, regression: LandmarkRegression, recipe: ReinforcementRecipe
) -> EncoderLearns:
    """The algorithm of a recipe, with its settings."""
    model = MAKERS[type(recipe)](encoded, recipe)
    model.regression, model.encoded, model.recipe, model.errors = regression, encoded, recipe, {}
    return model


def _attribute(model: BaseAlgorithm, name: str) -> Any:
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part)
    return found
