"""Training an adversary by reinforcement: PPO that directs PGD on the frames of a policy, and is paid what it loses."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from mrvlm_sim.agents.policy import EpisodeStart, Policy, batch_of_one, requirements_of
from mrvlm_sim.errors import UserError
from mrvlm_sim.metrics.attacks import DifferentiablePolicy, Threat, Victim
from mrvlm_sim.metrics.attacks.directed import (
    AdversaryCard,
    Directed,
    adversary_sees,
    make_director,
    save_adversary,
)
from mrvlm_sim.paths import make_parent, write_atomically
from mrvlm_sim.seeding import integer_seed
from mrvlm_sim.sim.external import as_dict
from mrvlm_sim.tasks import make_own_env
from mrvlm_sim.training.checkpoint import read_checkpoint, write_checkpoint
from mrvlm_sim.training.rl.envs import rewarded
from mrvlm_sim.training.trainer import interrupts_noted
from mrvlm_sim.wrappers import MultiResolutionTokens

ROLLOUT, BATCH, DISCOUNT = 256, 64, 0.95  # decisions between updates; a decision lasts as long as a chunk
HIDDEN = [64, 64]  # of stable-baselines3's `MlpPolicy`
Figures = dict[str, float]


class AdversaryEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An episode of an attacked policy, seen by its adversary: in every look it says which way to drive the actions.

    Observations are what `adversary_sees`, actions a direction (A,) in [-1, 1], the reward is what the policy loses.
    """

    def __init__(self, policy: Policy, environment: str, threat: Threat, seed: int) -> None:
        needs = requirements_of(policy)
        self.env = make_own_env(rewarded(environment))
        victim = Victim(policy, needs.cameras, needs.frame_interval, self.env)
        self.attack = Directed(threat, victim, np.random.default_rng(seed))
        self.eyes = MultiResolutionTokens(self.env, needs.cameras, "sensor", self.attack, needs.frame_interval)
        self.policy, self.interval = policy, needs.frame_interval
        self.action_space = spaces.Box(-1, 1, (self.eyes.action_size,), np.float32)
        observation, _ = self.env.reset(seed=seed)
        seen = adversary_sees(self.env, observation)
        self.observation_space = spaces.Box(-np.inf, np.inf, seen.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.attack.rng = self.np_random
        self.attack.direction = np.zeros(self.eyes.action_size)
        self._raw, info = self.env.reset(seed=int(self.np_random.integers(2**31)))
        self.policy.reset([EpisodeStart(info["instruction"], self.np_random, self.eyes.action_size, self.env)])
        self.eyes.look_afresh(as_dict(self._raw), self.np_random)
        return adversary_sees(self.env, self._raw), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One look under attack, and the actions until the next."""
        self.attack.direction = action
        observation, lost = self.eyes.look(as_dict(self._raw)), 0.0
        terminated = truncated = False
        for _ in range(self.interval):
            act = self.policy.act(batch_of_one(observation))[0].astype(np.float32)
            try:
                self._raw, reward, terminated, truncated, info = self.env.step(self.eyes.gaze.take(act))
            except FloatingPointError:  # a simulation that diverges is cut short, as in training policies
                reward, truncated, info = -1.0, True, {"is_success": False}
            lost -= float(reward)
            if terminated or truncated:
                break
            observation = observation | as_dict(self._raw)
        return adversary_sees(self.env, self._raw), lost, terminated, truncated, {"is_success": info["is_success"]}

    def close(self) -> None:
        self.eyes.close()


class AdversaryTraining:
    """Trains an adversary of one policy; `run` goes on from wherever the last checkpoint was.

    Raises:
        UserError: the policy gives no gradients, the environment is not the suite's own, or the checkpoint is damaged
            or of another run.
    """

    def __init__(self, policy: Policy, card: AdversaryCard, folder: Path) -> None:
        if not isinstance(policy, DifferentiablePolicy):
            raise UserError(f"an adversary directs gradients, which {card.policy} does not give; take an arm")
        if card.training_steps % ROLLOUT:
            raise UserError(f"--decisions must be a multiple of {ROLLOUT}, not {card.training_steps}")
        self.policy, self.folder = policy, folder
        self.threat = Threat(card.eps, card.steps, draws=card.draws)
        with closing(AdversaryEnv(policy, card.environment, self.threat, card.seed)) as env:
            ends = [int(np.prod(space.shape or ())) for space in (env.observation_space, env.action_space)]
        self.card = card.model_copy(update={"sizes": [ends[0], *HIDDEN, ends[1]]})
        self.saved, self.seconds, self.curve = 0, 0.0, list[Figures]()
        make_parent(self.checkpoint)
        self._state = self._resume() if self.checkpoint.exists() else None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(self, log: Callable[[int, Figures], None]) -> Path:
        """Train to the last decision; Ctrl-C ends the rollout that is under way. Returns the adversary's folder."""
        with closing(AdversaryEnv(self.policy, self.card.environment, self.threat, self.card.seed)) as env:
            model = PPO(
                "MlpPolicy", env, n_steps=ROLLOUT, batch_size=BATCH, gamma=DISCOUNT, seed=self.card.seed, device="cpu",
                policy_kwargs={"net_arch": HIDDEN},
            )  # fmt: skip
            if self._state is not None:
                model.policy.load_state_dict(self._state["policy"])
                model.policy.optimizer.load_state_dict(self._state["optimiser"])
            with interrupts_noted() as interrupted:
                while self.saved < self.card.training_steps:
                    self._rollout(model)
                    log(self.saved, self.curve[-1])
                    if interrupted():
                        raise KeyboardInterrupt
        return self.folder / "adversary"

    def _rollout(self, model: PPO) -> None:
        """One rollout and its update, with new episodes and streams of its own, so that going on is exact."""
        started = time.perf_counter()
        model.set_random_seed(integer_seed(self.card.seed, self.card.environment, self.saved, "adversary"))
        model._last_obs = None
        model.ep_info_buffer = model.ep_success_buffer = None
        model.num_timesteps = self.saved
        model.learn(ROLLOUT, reset_num_timesteps=False)
        self.seconds += time.perf_counter() - started
        self.saved += ROLLOUT
        ended: list[dict[str, float]] = [*(model.ep_info_buffer or [])]
        figures = {"decisions": self.saved, "seconds": round(self.seconds, 1)}
        figures["lost"] = float(np.mean([episode["r"] for episode in ended])) if ended else float("nan")
        figures["victim_success"] = float(np.mean(model.ep_success_buffer)) if model.ep_success_buffer else float("nan")
        self.curve.append(figures)
        self._save(model)

    def _save(self, model: PPO) -> None:
        """Checkpoint, curve, and the adversary as it is now."""
        state: dict[str, Any] = {"policy": model.policy.state_dict(), "optimiser": model.policy.optimizer.state_dict()}
        state |= {"saved": self.saved, "seconds": self.seconds, "curve": self.curve}
        write_checkpoint(self.checkpoint, {**state, "adversary": self.card.model_dump_json()})
        write_atomically(self.folder / "curve.csv", pd.DataFrame(self.curve).to_csv(index=False))
        director, actor = make_director(self.card.sizes), model.policy
        trained = [*actor.mlp_extractor.policy_net, actor.action_net]
        linear = [layer for layer in director if isinstance(layer, torch.nn.Linear)]
        taught = [layer for layer in trained if isinstance(layer, torch.nn.Linear)]
        for ours, theirs in zip(linear, taught, strict=True):
            ours.load_state_dict(theirs.state_dict())
        save_adversary(self.folder / "adversary", self.card, director)

    def _resume(self) -> dict[str, Any]:
        state = read_checkpoint(self.checkpoint, torch.device("cpu"), "adversary")
        if state["adversary"] != self.card.model_dump_json():
            raise UserError(f"{self.checkpoint} is of another adversary; choose another --output")
        self.saved, self.seconds, self.curve = state["saved"], state["seconds"], state["curve"]
        return state
