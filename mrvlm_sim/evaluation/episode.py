"""The unit of work: one episode of one policy under one condition, a pure function of its arguments."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mrvlm_sim.agents.policy import EpisodeStart, Policy, batch_of_one, check_actions, requirements_of
from mrvlm_sim.agents.registry import load_policy
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.moments import sample_moments
from mrvlm_sim.metrics.attacks import ATTACKS, Attack, Surrogate, Victim, make_mask
from mrvlm_sim.metrics.attacks.base import Prepared, device_of
from mrvlm_sim.metrics.attacks.directed import Directed, load_adversary
from mrvlm_sim.metrics.attacks.gradient import GradientAttack
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.external import as_dict
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv, simulator_state
from mrvlm_sim.wrappers import MultiResolutionTokens
from mrvlm_sim.wrappers.shifts import under

PREPARED_ON = 16  # looks from as many episodes
OTHER_SEED = 2**31 - 1  # of those episodes, which no run is of by chance

Watcher = Callable[[MultiResolutionTokens], None]  # called after every step, for videos


@dataclass(frozen=True)
class EpisodeRecord:
    """One row of a run; equal inputs give equal rows but for `latency_ms`."""

    environment: str
    policy: str
    condition: str
    suite_seed: int
    episode: int
    success: bool = False
    success_once: bool = False  # the goal held at some step, however briefly
    success_at_reset: bool = False  # the goal held before the first action: the episode says nothing
    steps: int = 0
    reward: float = 0.0
    instruction: str = ""
    largest_change: int = 0  # made by the attack, in sensor values
    start_hash: str = ""  # of the initial state
    frame_hash: str = ""  # of the first observation
    end_hash: str = ""  # of the final state
    error: str = ""
    latency_ms: list[float] = field(default_factory=list)  # of every decision but the first
    initial_state: bytes = b""  # float64: MuJoCo's integration state
    actions: bytes = b""  # float32 (steps, actions): what the policy did, for `replay`
    action_deviation: float = 0.0  # from what it would have done unattacked, mean over looks: 0 to 1
    forwards: int = 0  # passes of single observations that the attack cost
    backwards: int = 0

    def row(self) -> dict[str, Any]:
        """Flat values for a table; characters that UTF-8 does not have are spelt out."""
        values = asdict(self) | {"latency_ms": " ".join(f"{value:.3f}" for value in self.latency_ms)}
        return {name: _readable(value) if isinstance(value, str) else value for name, value in values.items()}


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def run_episode(
    env: SuiteEnv,
    environment: str,
    policy: Policy,
    name: str,
    condition: Condition,
    suite_seed: int,
    episode: int,
    watch: Watcher = lambda wrapped: None,
) -> EpisodeRecord:
    """Run one episode from reset to end; whatever goes wrong in policy or simulation becomes the record's `error`."""
    outcome: dict[str, Any] = {}
    try:
        _run(env, environment, policy, condition, suite_seed, episode, watch, outcome)
    except (Exception, SystemExit) as error:
        outcome |= {"error": f"{type(error).__name__}: {error}", "success": False}
    return EpisodeRecord(environment, name, condition.name, suite_seed, episode, **outcome)


def _run(
    env: SuiteEnv,
    environment: str,
    policy: Policy,
    condition: Condition,
    suite_seed: int,
    episode: int,
    watch: Watcher,
    outcome: dict[str, Any],
) -> None:
    def stream(purpose: str) -> np.random.Generator:
        return generator(suite_seed, environment, episode, purpose)

    attack, shift = (
        _attack(condition, policy, env, environment, stream("attack")),
        condition.make_shift(stream("shift")),
    )
    needs = requirements_of(policy)
    cameras = condition.look_through(needs.cameras)
    hook = shift.frames if shift is not None and shift.of_frames else attack
    with under(env, shift) as begun:
        jitter = stream("jitter")
        wrapped = MultiResolutionTokens(begun, cameras, condition.source, hook, needs.frame_interval, jitter)
        seen, info = begun.reset(seed=integer_seed(suite_seed, environment, episode, "initial state"))
        # Before the first look, as an attack on that may ask the policy.
        policy.reset([EpisodeStart(info["instruction"], stream("policy"), wrapped.action_size, env)])
        observation = wrapped.look_afresh(as_dict(seen), jitter)
        _note_start(env, observation, info, outcome)
        _play(env, wrapped, policy, observation, watch, outcome)
    outcome |= {"end_hash": digest(simulator_state(env))}


def _note_start(env: SuiteEnv, observation: Observation, info: dict[str, Any], outcome: dict[str, Any]) -> None:
    state = simulator_state(env)
    outcome |= {"success_at_reset": env.solved()}
    outcome |= {"instruction": info["instruction"], "start_hash": digest(state), "initial_state": state.tobytes()}
    outcome |= {"frame_hash": digest(*(observation[key] for key in sorted(observation)))}


def _play(
    env: SuiteEnv,
    wrapped: MultiResolutionTokens,
    policy: Policy,
    observation: Observation,
    watch: Watcher,
    outcome: dict[str, Any],
) -> None:
    """Act until the episode is over; `outcome` says at every moment what is known."""
    attack, interval = wrapped.frame_hook, wrapped.frame_interval
    latencies: list[float] = []
    over, step, reward = False, 0, 0.0
    watch(wrapped)
    while not over:
        batch = batch_of_one(observation)
        started = time.perf_counter()
        actions = policy.act(batch)
        if step % interval == 0:
            latencies.append(1000 * (time.perf_counter() - started))
        action = check_actions(actions, (1, wrapped.action_size))[0].astype(np.float32)
        outcome["actions"] = outcome.get("actions", b"") + action.tobytes()
        observation, gained, terminated, truncated, info = wrapped.step(action)
        step, reward, over = step + 1, reward + gained, terminated or truncated
        once = outcome.get("success_once", False) or info["held_steps"] > 0
        outcome |= {"success": info["is_success"], "success_once": once, "steps": step, "reward": reward}
        outcome |= {"latency_ms": latencies[1:], **(attack.done() if isinstance(attack, Attack) else {})}
        watch(wrapped)


def _attack(
    condition: Condition, policy: Policy, env: SuiteEnv, environment: str, rng: np.random.Generator
) -> Attack | None:
    if condition.attack is None:
        return None
    attack = _make_attack(condition, policy, rng, env)
    if isinstance(attack, Prepared):
        attack.take_over(_prepared(condition, policy, environment))  # type: ignore[arg-type]
    return attack


def _make_attack(condition: Condition, policy: Policy, rng: np.random.Generator, env: SuiteEnv | None = None) -> Attack:
    kind, mask, victim = ATTACKS[str(condition.attack)], make_mask(condition.region), victim_of(policy, env)
    if condition.surrogate is None:
        attack = kind(condition.threat, victim, rng, mask)
        if condition.adversary is not None and isinstance(attack, Directed):
            attack.director = load_adversary(Path(condition.adversary))
        return attack
    assert issubclass(kind, GradientAttack)
    return kind(condition.threat, victim, rng, mask, surrogate_of(condition.surrogate, victim))


@lru_cache(maxsize=8)
def _prepared(condition: Condition, policy: Any, environment: str) -> Any:
    """An attack that has seen other episodes: the same ones for every run."""
    attack = _make_attack(condition, policy, generator(OTHER_SEED, environment, 0, "attack"))
    assert isinstance(attack, Prepared)
    attack.prepare(sample_moments(policy, environment, PREPARED_ON, OTHER_SEED, attack.note))
    return attack


def victim_of(policy: Policy, env: SuiteEnv | None = None) -> Victim:
    """A policy as attacks see it."""
    needs = requirements_of(policy)
    return Victim(policy, needs.cameras, needs.frame_interval, env)


def surrogate_of(reference: str, victim: Victim) -> Victim:
    """A policy that is attacked in place of another.

    Raises:
        UserError: there is none of that name, it gives no gradients, or it looks through other cameras.
    """
    other = victim_of(load_policy(reference, device=str(device_of(victim.policy))), victim.env)
    return replace(other, policy=Surrogate(other.policy, other.pyramids, victim.pyramids, reference))


def digest(*arrays: np.ndarray) -> str:
    """A short hash of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]
