"""PPO of stable-baselines3 on encoded observations, whose encoder learns after every rollout."""

import numpy as np
from stable_baselines3 import PPO

from mrvlm_sim.agents.card import ReinforcementRecipe
from mrvlm_sim.training.rl.actor_critic import ActorCritic
from mrvlm_sim.training.rl.auxiliary import LandmarkRegression
from mrvlm_sim.training.rl.envs import EncodedVecEnv


class EncoderPPO(PPO):
    """The encoder learns where things are from every rollout's frames, after actor and critic have learned."""

    regression: LandmarkRegression
    encoded: EncodedVecEnv
    recipe: ReinforcementRecipe
    errors: dict[str, float]  # of the encoder, in the last rollout

    def train(self) -> None:
        super().train()
        rng = np.random.default_rng([self.recipe.seed, self.num_timesteps])
        self.errors = self.regression.learn(self.recipe.encoder_updates, rng, self.encoded.take_frames())
        for name, value in self.errors.items():
            self.logger.record(f"encoder/{name}", value)


def make_ppo(encoded: EncodedVecEnv, regression: LandmarkRegression, recipe: ReinforcementRecipe) -> EncoderPPO:
    """The algorithm with the settings of a recipe."""
    model = EncoderPPO(
        ActorCritic, encoded, learning_rate=recipe.policy_rate, n_steps=recipe.rollout, batch_size=recipe.batch,
        n_epochs=recipe.epochs, gamma=recipe.discount, gae_lambda=recipe.gae_lambda, clip_range=recipe.clip_range,
        ent_coef=recipe.entropy, seed=recipe.seed, device="cpu",
        policy_kwargs={"hidden": 2 * encoded.network.config.width, "log_std_init": recipe.log_std},
    )  # fmt: skip
    model.regression, model.encoded, model.recipe = regression, encoded, recipe
    return model
