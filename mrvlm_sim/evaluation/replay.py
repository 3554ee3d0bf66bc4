"""An episode once more, from its initial state and its actions alone: no policy is needed."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.policy import Requirements
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.evaluation.episode import digest
from mrvlm_sim.evaluation.runs import environment_identity
from mrvlm_sim.evaluation.store import Key, read_episodes, read_log, read_parts
from mrvlm_sim.evaluation.video import EpisodeVideo
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.env import simulator_state
from mrvlm_sim.tasks import make_env
from mrvlm_sim.wrappers import MultiResolutionTokens


@dataclass(frozen=True)
class Replayed:
    """The end of a replayed episode, and in what it differs from the record."""

    key: Key
    success: bool
    steps: int
    differences: tuple[str, ...]


def find_episode(folder: Path, episode: int, policy: str | None, condition: str, seed: int | None = None) -> Key:
    """The key of an episode; policy and suite seed may be left out where a run has only one.

    Raises:
        UserError: no such episode, policy or condition in the run, or several policies or seeds and none named.
    """
    rows = read_episodes(folder)
    policies = rows["policy"].unique().tolist()
    if policy is None and len(policies) > 1:
        raise UserError(f"{folder} has several policies; name one with --policy: {', '.join(policies)}")
    name = policies[0] if policy is None and policies else policy or ""
    for kind, wanted in (("policy", name), ("condition", condition)):
        if wanted not in set(rows[kind]):
            raise unknown_name(f"{kind} in {folder}", wanted, rows[kind].unique().tolist())
    own = rows[(rows["policy"] == name) & (rows["condition"] == condition)]
    seeds = [found for found in own.loc[own["episode"] == episode, "suite_seed"] if seed in (None, found)]
    if not seeds:
        raise UserError(f"{folder} has no finished episode {episode} of {name} under {condition}")
    if len(seeds) > 1:
        raise UserError(f"{folder} has several suite seeds; name one with --seed: {', '.join(map(str, seeds))}")
    return Key(name, condition, int(seeds[0]), episode)


def replay(folder: Path, key: Key, video: Path | None = None, height: int = 360) -> Replayed:
    """Run the recorded actions again; with `video`, film them with the views that the policy had.

    Views of an attacked episode are shown as they were before the attack.
    """
    rows = read_episodes(folder).set_index(list(Key._fields))
    record, (state, actions) = rows.loc[key], read_log(folder, key)
    name = str(record["environment"])
    env = make_env(name)
    needs = _requirements(folder, key.policy)
    jitter = generator(key.suite_seed, name, key.episode, "jitter")
    wrapped = MultiResolutionTokens(env, needs.cameras, "nested", None, needs.frame_interval, jitter_rng=jitter)
    differences = _changed_environment(folder, name)
    try:
        wrapped.reset(seed=integer_seed(key.suite_seed, name, key.episode, "initial state"))
        if not np.array_equal(simulator_state(env), state):
            differences.append("the initial state")
        success = _step_through(wrapped, actions, video, height)
        for what, was, now in (
            ("the final state", record["end_hash"], digest(simulator_state(env)) if record["end_hash"] else ""),
            ("success", bool(record["success"]), success),
        ):
            if was != now:
                differences.append(f"{what}: was {was}, is {now}")
    finally:
        env.close()
    return Replayed(key, success, len(actions), tuple(differences))


def _step_through(wrapped: MultiResolutionTokens, actions: np.ndarray, video: Path | None, height: int) -> bool:
    """Carry out the actions; whether the last one left the task solved."""
    film, success = EpisodeVideo(video, height) if video else None, False
    if film:
        film.add(wrapped)
    for action in actions:
        success = bool(wrapped.step(action)[4]["is_success"])
        if film:
            film.add(wrapped)
    if film:
        film.write()
    return success


def _requirements(folder: Path, policy: str) -> Requirements:
    """What the policy saw, as far as its card tells."""
    identity = read_parts(folder, "policy")[policy]["identity"]
    if "card" not in identity:
        return Requirements()
    card = PolicyCard.model_validate_json(json.dumps(identity["card"]), strict=True)
    return Requirements(card.cameras, card.network.action_size, frame_interval=card.execute)


def _changed_environment(folder: Path, name: str) -> list[str]:
    same = read_parts(folder, "environment")[name] == environment_identity(name)
    return [] if same else [f"the card or the files of {name}"]
