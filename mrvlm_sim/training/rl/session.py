"""One training by reinforcement from card to policy folder: segments, checkpoints, curves, weights.

A segment is some rollouts and a checkpoint. Every segment begins with new episodes and with random streams named by
(seed, segment), so a run that was interrupted goes on from its last checkpoint as if it had not been, to the bit.
"""

import copy
import json
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed

from mrvlm_sim.agents.card import PolicyCard, ReinforcementRecipe
from mrvlm_sim.agents.trained import TrainedPolicy, load_trained
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.paths import write_atomically
from mrvlm_sim.seeding import integer_seed
from mrvlm_sim.tasks import make_task
from mrvlm_sim.training.rl.actor_critic import ActorCritic, give_head, take_head
from mrvlm_sim.training.rl.envs import Eyes, probe, vector_env
from mrvlm_sim.training.rl.looking import look_around
from mrvlm_sim.training.rl.perception import Perception
from mrvlm_sim.training.session import write_policy

Figures = dict[str, float]
Evaluate = Callable[[TrainedPolicy], float]
Log = Callable[[int, Figures], None]
RENDERERS = 2  # processes that look around
LESSONS = 100  # first updates of the encoder between two lines of the log


class SeeingPPO(PPO):
    """PPO whose encoder learns from every rollout's frames, after the actor and the critic did."""

    perception: Perception
    eyes: Eyes
    recipe: ReinforcementRecipe
    learned: Figures  # of the encoder, in the last rollout

    def train(self) -> None:
        super().train()
        rng = np.random.default_rng([self.recipe.seed, self.num_timesteps])
        self.learned = self.perception.learn(self.recipe.encoder_updates, rng, self.eyes.take_frames())
        for name, value in self.learned.items():
            self.logger.record(f"encoder/{name}", value)


class Reinforcement:
    """Trains an arm by PPO; `run` goes on from wherever the last checkpoint was.

    Raises:
        UserError: the environment is another package's or has no reward to learn from, the policy to begin with has
            another shape, or the checkpoint is damaged or of another run; it says what differs.
    """

    def __init__(self, card: PolicyCard, environment: str, folder: Path, processes: bool = True) -> None:
        assert isinstance(card.training, ReinforcementRecipe)
        self.card, self.recipe, self.folder = card, card.training, folder
        self.environment, self.seconds, self.curve = environment, 0.0, list[Figures]()
        proprio = probe(environment, self.recipe.seed)
        torch.manual_seed(self.recipe.seed)
        self.network = PolicyNetwork(card.cameras, card.network)
        self.network.proprio_mean.copy_(torch.from_numpy(proprio[0]))
        self.network.proprio_std.copy_(torch.from_numpy(proprio[1]))
        if self.recipe.init is not None:
            begin_as(self.network, self.recipe.init)
        self.perception = Perception(self.network, self.recipe, make_task(environment))
        self._processes = processes
        self._state: dict[str, Any] | None = self._read() if self.checkpoint.exists() else None
        self.steps = self._state["steps"] if self._state else 0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self, evaluate: Evaluate | None, log: Log) -> TrainedPolicy:
        """Train to the last step; after every segment `evaluate` says how well, and `log` receives the figures."""
        if self.steps == self.recipe.steps:
            return self.policy()
        self._look_around()
        model = self._start()
        try:
            self._first_lessons(model, log)
            while self.steps < self.recipe.steps:
                self._segment(model)
                figures = self._figures(model) | ({"success": evaluate(self.policy())} if evaluate else {})
                self.curve.append(figures)
                self._save(model)
                log(self.steps, figures)
        finally:
            model.get_env().close()  # type: ignore[union-attr]
        return self.policy()

    def policy(self) -> TrainedPolicy:
        """The policy as it is now, apart from the network that goes on learning."""
        return TrainedPolicy(self.card, copy.deepcopy(self.network), torch.device("cpu"))

    def _start(self) -> SeeingPPO:
        recipe = self.recipe
        eyes = Eyes(vector_env(self.environment, self.card.cameras, recipe.environments, self._processes), self.network)
        model = make_ppo(eyes, self.perception, recipe)
        model.set_logger(configure(str(self.folder), ["tensorboard"]))
        if self._state is not None:
            self._restore(model, self._state)
        elif recipe.init is not None:
            take_head(model.policy, self.network)  # type: ignore[arg-type]
        return model

    def _look_around(self) -> None:
        recipe, cameras, started = self.recipe, self.card.cameras, time.perf_counter()
        workers = RENDERERS if self._processes else 0
        self.perception.scenes = look_around(self.environment, cameras, recipe.scenes, recipe.seed, workers)
        self.seconds += time.perf_counter() - started if self.perception.updates == 0 else 0

    def _first_lessons(self, model: SeeingPPO, log: Log) -> None:
        """Before anything is done; kept as a whole or not at all."""
        left, started = self.recipe.first_updates - self.perception.updates, time.perf_counter()
        while left > 0:
            rng = np.random.default_rng([self.recipe.seed, 0, self.perception.updates])
            figures = self.perception.learn(min(left, LESSONS), rng)
            log(0, {"encoder_updates": self.perception.updates, **figures})
            left -= LESSONS
        if self.steps == 0:
            self.seconds += time.perf_counter() - started
            self._save(model)

    def _segment(self, model: SeeingPPO) -> None:
        recipe, started = self.recipe, time.perf_counter()
        seed = integer_seed(recipe.seed, self.environment, self.steps, "training segment")
        set_random_seed(seed)
        model.get_env().seed(seed)  # type: ignore[union-attr]
        model._last_obs = None  # so that episodes begin anew
        model.ep_info_buffer = model.ep_success_buffer = None
        frames = recipe.environments * recipe.rollout * recipe.segment
        model.learn(frames, reset_num_timesteps=False)
        give_head(model.policy, self.network)  # type: ignore[arg-type]
        self.steps = model.num_timesteps
        self.seconds += time.perf_counter() - started

    def _figures(self, model: SeeingPPO) -> Figures:
        ended = [*(model.ep_info_buffer or [])]
        return {
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "train_return": float(np.mean([episode["r"] for episode in ended])) if ended else float("nan"),
            "train_success": float(np.mean(model.ep_success_buffer)) if model.ep_success_buffer else float("nan"),
            "named_mm": round(model.learned["named_mm"], 1),
        }

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        card = self.card.model_dump(mode="json", exclude={"weights", "summary", "environments"})
        return {"environment": self.environment, **card}

    def _save(self, model: SeeingPPO) -> None:
        """Write checkpoint and curve, each atomically."""
        optimisers = [optimiser.state_dict() for optimiser in self.perception.optimisers]
        state = {"network": self.network.state_dict(), "encoder_optimisers": optimisers}
        state |= {"policy": model.policy.state_dict(), "policy_optimiser": model.policy.optimizer.state_dict()}
        progress = {"steps": self.steps, "seconds": self.seconds, "curve": self.curve, "updates": model._n_updates}
        progress |= {"encoder_updates": self.perception.updates}
        partial = self.checkpoint.with_suffix(".partial")
        torch.save({**state, **progress, "identity": json.dumps(self._identity())}, partial)
        partial.rename(self.checkpoint)
        write_atomically(self.folder / "curve.csv", pd.DataFrame(self.curve).to_csv(index=False))

    def _read(self) -> dict[str, Any]:
        try:
            state = torch.load(self.checkpoint, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.checkpoint} is truncated or damaged; delete it to start again") from error
        if "identity" not in state:
            raise UserError(f"{self.checkpoint} is of another kind of training; choose another --output")
        if different := differences(json.loads(state["identity"]), self._identity()):
            raise UserError(f"{self.checkpoint} is of another run; choose another --output: {'; '.join(different)}")
        self.seconds, self.curve = state["seconds"], state["curve"]
        return state

    def _restore(self, model: SeeingPPO, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        for optimiser, saved in zip(self.perception.optimisers, state["encoder_optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["policy_optimiser"])
        model.num_timesteps, model._n_updates = state["steps"], state["updates"]
        self.perception.updates = state["encoder_updates"]


def make_ppo(eyes: Eyes, perception: Perception, recipe: ReinforcementRecipe) -> SeeingPPO:
    """The algorithm with the settings of a recipe, on environments that are seen through `eyes`."""
    model = SeeingPPO(
        ActorCritic, eyes, learning_rate=recipe.policy_rate, n_steps=recipe.rollout, batch_size=recipe.batch,
        n_epochs=recipe.epochs, gamma=recipe.discount, gae_lambda=recipe.gae_lambda, clip_range=recipe.clip_range,
        ent_coef=recipe.entropy, seed=recipe.seed, device="cpu",
        policy_kwargs={"hidden": 2 * eyes.network.config.width, "log_std_init": recipe.log_std},
    )  # fmt: skip
    model.perception, model.eyes, model.recipe = perception, eyes, recipe
    return model


def begin_as(network: PolicyNetwork, folder: str) -> None:
    """Give a network the weights of a trained policy; of its chunk of actions, the first.

    Raises:
        UserError: the policy has another shape; it says where.
    """
    given, own = load_trained(Path(folder)).network.state_dict(), network.state_dict()
    last = f"action_head.layers.{len(network.action_head.layers) - 1}"
    for name in (f"{last}.weight", f"{last}.bias"):
        given[name] = given[name][: len(own[name])]
    strange = sorted(
        n for n in given.keys() | own.keys() if getattr(given.get(n), "shape", 0) != getattr(own.get(n), "shape", 1)
    )
    if strange:
        raise UserError(
            f"--init {folder} has another shape than this arm, for example in {strange[0]}; take one of this arm"
        )
    network.load_state_dict(given)


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two nested maps differ, in words."""
    found: list[str] = []
    for key in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(key), ours.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key} was {there!r} there and is {here!r} here")
    return found


def finish(training: Reinforcement) -> Path:
    """Write the policy folder: card with hash, versions and time, and the weights."""
    return write_policy(training.folder / "policy", training.card, training.network, training.seconds)
