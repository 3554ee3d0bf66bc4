"""One training by reinforcement from card to policy folder: pretraining, segments, checkpoints, curves, weights.

A segment is some rollouts and a checkpoint. Every segment begins with new episodes and with random streams named by
(seed, step), so a run that was interrupted goes on from its last checkpoint as if it had not been, to the bit.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from stable_baselines3.common.logger import configure

from mrvlm_sim.agents.card import PolicyCard, ReinforcementRecipe
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.models import PolicyNetwork
from mrvlm_sim.paths import make_parent, write_atomically
from mrvlm_sim.seeding import integer_seed
from mrvlm_sim.tasks import make_task
from mrvlm_sim.training.checkpoint import read_checkpoint, write_checkpoint
from mrvlm_sim.training.initial import begin_as, unlike
from mrvlm_sim.training.rl.actor_critic import copy_actor_to_head, copy_head_to_actor
from mrvlm_sim.training.rl.algorithms import EncoderLearns, make_algorithm
from mrvlm_sim.training.rl.auxiliary import LandmarkRegression
from mrvlm_sim.training.rl.envs import EncodedVecEnv, check_network, probe, vector_env
from mrvlm_sim.training.rl.pretraining import random_scenes
from mrvlm_sim.training.session import write_policy
from mrvlm_sim.training.trainer import interrupts_noted

Figures = dict[str, float]
Evaluate = Callable[[TrainedPolicy], float]
Log = Callable[[int, Figures], None]
RENDERERS = 2  # processes that render the scenes of pretraining
LOG_EVERY, CHECK_EVERY = 100, 500  # updates of pretraining


class Reinforcement:
    """Trains an arm by reinforcement; `run` goes on from wherever the last checkpoint was.

    Raises:
        UserError: the environment is another package's or has no reward to learn from, the network or the policy to
            begin with does not fit, or the checkpoint is damaged or of another run; it says what differs.
    """

    def __init__(self, card: PolicyCard, environment: str, folder: Path, processes: bool = True) -> None:
        assert isinstance(card.training, ReinforcementRecipe)
        self.card, self.recipe, self.folder = card, card.training, folder
        self.environment, self.processes = environment, processes
        self.saved, self.seconds, self.curve = 0, 0.0, list[Figures]()
        check_network(card.network, card.cameras, environment)
        mean, spread = probe(environment, self.recipe.seed)
        torch.manual_seed(self.recipe.seed)
        self.network = PolicyNetwork(card.cameras, card.network)
        self.network.proprio_mean.copy_(torch.from_numpy(mean))
        self.network.proprio_std.copy_(torch.from_numpy(spread))
        if self.recipe.init is not None:
            begin_as(self.network, card, Path(self.recipe.init))
        self.regression = LandmarkRegression(self.network, self.recipe, make_task(environment))
        make_parent(self.checkpoint)
        self._state: Mapping[str, Any] | None = self._resume() if self.checkpoint.exists() else None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def policy(self) -> TrainedPolicy:
        """The policy as it is now, apart from the network that goes on learning."""
        return TrainedPolicy(self.card, copy.deepcopy(self.network), torch.device("cpu"))

    def run(self, evaluate: Evaluate | None, log: Log) -> None:
        """Train to the last step; after every segment `evaluate` says how well, and `log` receives the figures.

        Ctrl-C ends the step that is under way and comes out as KeyboardInterrupt; what was `saved` stays.
        """
        if self.saved == self.recipe.steps:
            return
        try:
            self._run(evaluate, log)
        except (EOFError, ConnectionError) as error:
            raise UserError(
                "a process of the environments died; the same command goes on from the last checkpoint"
            ) from error

    def _run(self, evaluate: Evaluate | None, log: Log) -> None:
        self._render_scenes()
        count, cameras = self.recipe.environments, self.card.cameras
        with closing(EncodedVecEnv(vector_env(self.environment, cameras, count, self.processes), self.network)) as env:
            model = self._model(env)
            with interrupts_noted() as env.interrupted:
                self._pretrain(model, log)
                while self.saved < self.recipe.steps:
                    self._segment(model)
                    figures = self._figures(model) | ({"success": evaluate(self.policy)} if evaluate else {})
                    self.curve.append(figures)
                    self._save(model)
                    log(self.saved, figures)

    def _render_scenes(self) -> None:
        recipe, started = self.recipe, time.perf_counter()
        self.regression.scenes = random_scenes(
            self.environment, self.card.cameras, recipe.pretraining_scenes, recipe.seed, RENDERERS * self.processes
        )
        if self._state is None:
            self.seconds += time.perf_counter() - started

    def _model(self, env: EncodedVecEnv) -> EncoderLearns:
        model = make_algorithm(env, self.regression, self.recipe)
        model.set_logger(configure(str(self.folder), ["tensorboard"]))
        if self._state is not None:
            model.load_state(self._state["algorithm"])
        elif self.recipe.init is not None:
            copy_head_to_actor(self.network, model.policy)
        return model

    def _pretrain(self, model: EncoderLearns, log: Log) -> None:
        """The encoder alone; kept as a whole or not at all."""
        planned, started = self.recipe.pretraining_updates, time.perf_counter()
        if self._state is not None:
            return
        while (left := planned - self.regression.updates) > 0:
            rng = np.random.default_rng([self.recipe.seed, 0, self.regression.updates])
            errors = self.regression.learn(min(left, LOG_EVERY), rng)
            checked = self.regression.check() if self.regression.updates % CHECK_EVERY == 0 else {}
            log(0, {"encoder_updates": self.regression.updates, **errors, **checked})
            if model.encoded.interrupted():
                raise KeyboardInterrupt
        self.seconds += time.perf_counter() - started
        self._save(model)

    def _segment(self, model: EncoderLearns) -> None:
        recipe, started = self.recipe, time.perf_counter()
        seed = integer_seed(recipe.seed, self.environment, self.saved, "training segment")
        model.set_random_seed(seed)  # of the environments, too
        model.encoded.forget()
        model._last_obs = None  # so that episodes begin anew
        model.ep_info_buffer = model.ep_success_buffer = None
        model.learn(recipe.environments * recipe.rollout * recipe.segment, reset_num_timesteps=False)
        copy_actor_to_head(model.policy, self.network)
        self.seconds += time.perf_counter() - started

    def _figures(self, model: EncoderLearns) -> Figures:
        ended = [*(model.ep_info_buffer or [])]
        return {
            "seed": self.recipe.seed,
            "steps": model.num_timesteps,
            "seconds": round(self.seconds, 1),
            "train_return": float(np.mean([episode["r"] for episode in ended])) if ended else float("nan"),
            "train_success": float(np.mean(model.ep_success_buffer)) if model.ep_success_buffer else float("nan"),
            "named_mm": round(model.errors.get("named_mm", float("nan")), 1),
        }

    def _identity(self) -> dict[str, Any]:
        card = self.card.model_dump(mode="json", exclude={"weights", "summary", "environments"})
        return {"environment": self.environment, **card}

    def _save(self, model: EncoderLearns) -> None:
        """Write checkpoint and curve, each atomically."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "encoder_optimisers": self.regression.optimisation.state(),
        }
        state |= {"encoder_updates": self.regression.updates, "algorithm": model.state()}
        state |= {"steps": model.num_timesteps, "seconds": self.seconds, "curve": self.curve}
        write_checkpoint(self.checkpoint, {**state, "identity": json.dumps(self._identity())})
        write_atomically(self.folder / "curve.csv", pd.DataFrame(self.curve).to_csv(index=False))
        self.saved = model.num_timesteps

    def _resume(self) -> Mapping[str, Any]:
        state = read_checkpoint(self.checkpoint, torch.device("cpu"), "identity")
        if different := unlike(json.loads(state["identity"]), self._identity()):
            raise UserError(f"{self.checkpoint} is of another run; choose another --output: {'; '.join(different)}")
        self.network.load_state_dict(state["network"])
        self.regression.optimisation.load(state["encoder_optimisers"])
        self.regression.updates = state["encoder_updates"]
        self.saved, self.seconds, self.curve = state["steps"], state["seconds"], state["curve"]
        return state


def finish(training: Reinforcement) -> Path:
    """Write the policy folder: card with hash, versions and time, and the weights."""
    return write_policy(training.folder / "policy", training.card, training.network, training.seconds)
