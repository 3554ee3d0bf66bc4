"""The unit of work: one episode of one policy under one condition, a pure function of its arguments."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mrvlm_sim.agents.policy import EpisodeStart, Policy, batch_of_one, check_actions, requirements_of
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.metrics.attacks import ATTACKS, Attack, Knowledge, Threat, Victim
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.suite_env import Observation, SuiteEnv, simulator_state
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.vision.eyes import EYES, changed_eyes
from mrvlm_sim.wrappers import MultiResolutionTokens
from mrvlm_sim.wrappers.shifts import SHIFTS, Shift, check_shift, under
from mrvlm_sim.wrappers.tokens import Source

Watcher = Callable[[MultiResolutionTokens], None]  # called after every step, for videos


@dataclass(frozen=True)
class Condition:
    """What an episode is run under: the source of its views and, possibly, an attack, a shift or other eyes."""

    name: str = "clean"
    source: Source = "nested"
    attack: str | None = None
    eps: float = 0.0
    steps: int = 10
    shift: str | None = None
    severity: float = 0.0
    eyes: str | None = None
    knowledge: Knowledge = "unknown"  # of the jitter, of an attacker
    draws: int = 4  # of the jitter, in every step of an attack

    def __post_init__(self) -> None:
        if self.eyes is not None and self.eyes not in EYES:
            raise unknown_name("eyes", self.eyes, EYES)
        if self.shift is not None:
            check_shift(self.shift, self.severity)
            if SHIFTS[self.shift].of_frames and self.source != "sensor":
                raise UserError(
                    f"shift {self.shift} changes sensor frames: its source is 'sensor', not {self.source!r}"
                )
        if self.attack is not None:
            if self.attack not in ATTACKS:
                raise unknown_name("attack", self.attack, ATTACKS)
            self.threat  # noqa: B018
            if self.source != "sensor":
                raise UserError(f"an attack changes sensor frames, so its source must be 'sensor', not {self.source!r}")

    @property
    def threat(self) -> Threat:
        """What the attacker may do.

        Raises:
            UserError: that is no attack on 8-bit pixels.
        """
        return Threat(self.eps, self.steps, self.knowledge, self.draws)

    @property
    def own_only(self) -> bool:
        """Whether it takes an environment of this suite's own."""
        return (
            self.eyes == "gaze-oracle"
            or self.attack == "targeted"
            or (self.shift is not None and SHIFTS[self.shift].own_only)
        )

    def described(self) -> dict[str, Any]:
        """What a run keeps of it; only one with a shift or other eyes speaks of them, as runs did before there were."""
        said = {"shift": self.shift, "severity": self.shift, "eyes": self.eyes}
        later = {"knowledge": "unknown", "draws": 4}
        return {n: v for n, v in vars(self).items() if said.get(n, "") is not None and later.get(n, ...) != v}

    def make_shift(self, rng: np.random.Generator) -> Shift | None:
        return None if self.shift is None else SHIFTS[self.shift](self.severity, rng)

    def look_through(self, cameras: Mapping[str, Pyramid]) -> Mapping[str, Pyramid]:
        """The eyes of a policy under this condition.

        Raises:
            UserError: the policy cannot look through those.
        """
        return cameras if self.eyes is None else changed_eyes(cameras, self.eyes, retrained=False)

    def applies_to(self, policy: Policy) -> bool:
        """Whether there is something to change: a policy that sees, through several levels if its eyes are to be
        others, and gives gradients if the attack is white-box.

        Raises:
            UserError: the policy cannot look through the other eyes.
        """
        cameras = requirements_of(policy).cameras
        if self.eyes is not None:
            return any(pyramid.levels > 1 for pyramid in cameras.values()) and bool(self.look_through(cameras))
        if self.attack is None:
            return True
        return bool(cameras) and isinstance(policy, ATTACKS[self.attack].needs)


def conditions_of(
    attacks: Sequence[str], eps: float, steps: int, shifts: Sequence[tuple[str, float]], eyes: Sequence[str] = ()
) -> list[Condition]:
    """The clean condition, then every attack, every (shift, severity) and all other eyes, from the source they need.

    Raises:
        UserError: unknown attack, shift or eyes, or a size out of range.
    """
    for name, severity in shifts:
        check_shift(name, severity)
    sensor = bool(attacks) or any(SHIFTS[name].of_frames for name, _ in shifts)
    source: Source = "sensor" if sensor else "nested"
    return [
        Condition(source=source),
        *(Condition(name, source, name, eps, steps) for name in attacks),
        *(Condition(f"{name} {size:g}", source, shift=name, severity=size) for name, size in shifts),
        *(Condition(name, source, eyes=name) for name in eyes),
    ]


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

    attack, shift = _attack(condition, policy, env, stream("attack")), condition.make_shift(stream("shift"))
    needs = requirements_of(policy)
    cameras = condition.look_through(needs.cameras)
    hook = shift.frames if shift is not None and shift.of_frames else attack
    with under(env, shift) as begun:
        wrapped = MultiResolutionTokens(
            begun, cameras, condition.source, hook, needs.frame_interval, jitter_rng=stream("jitter")
        )
        observation, info = wrapped.reset(seed=integer_seed(suite_seed, environment, episode, "initial state"))
        _note_start(env, observation, info, outcome)
        policy.reset([EpisodeStart(info["instruction"], stream("policy"), wrapped.action_size, env)])
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


def _attack(condition: Condition, policy: Policy, env: SuiteEnv, rng: np.random.Generator) -> Attack | None:
    if condition.attack is None:
        return None
    needs = requirements_of(policy)
    victim = Victim(policy, needs.cameras, needs.frame_interval, env)
    return ATTACKS[condition.attack](condition.threat, victim, rng)


def digest(*arrays: np.ndarray) -> str:
    """A short hash of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]
