"""An episode once more, from its initial state and its actions alone: no policy is needed."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mrvlm_sim.agents.card import PolicyCard
from mrvlm_sim.agents.policy import Policy, Requirements, requirements_of
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import digest
from mrvlm_sim.evaluation.runs import environment_identity
from mrvlm_sim.evaluation.store import Key, read_episodes, read_log, read_parts
from mrvlm_sim.evaluation.video import EpisodeVideo
from mrvlm_sim.seeding import generator, integer_seed
from mrvlm_sim.sim.suite_env import simulator_state
from mrvlm_sim.tasks import make_env
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.wrappers import MultiResolutionTokens
from mrvlm_sim.wrappers.shifts import under


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

    Views are shown as they were before an attack, noise or blur.
    """
    rows = read_episodes(folder).set_index(list(Key._fields))
    record, (state, log) = rows.loc[key], read_log(folder, key)
    name = str(record["environment"])
    env = make_env(name)
    described = read_parts(folder, "condition")[key.condition]
    condition = Condition(
        **{field.name: described[field.name] for field in fields(Condition) if field.name in described}
    )
    shift = condition.make_shift(generator(key.suite_seed, name, key.episode, "shift"))
    needs = _requirements(folder, key.policy)
    cameras = condition.look_through(needs.cameras)
    jitter = generator(key.suite_seed, name, key.episode, "jitter")
    differences = _changed_environment(folder, name)
    try:
        with under(env, shift) as begun:
            wrapped = MultiResolutionTokens(begun, cameras, "nested", None, needs.frame_interval, jitter_rng=jitter)
            actions = log.reshape(-1, wrapped.action_size)
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


def eyes_of(policy: Policy) -> dict[str, Any]:
    """What a run must keep of a policy so that a film can show what it saw; a trained one has its card."""
    needs = requirements_of(policy)
    if isinstance(policy, TrainedPolicy) or not needs.cameras:
        return {}
    cameras = {name: pyramid.model_dump(mode="json") for name, pyramid in needs.cameras.items()}
    return {"eyes": {"cameras": cameras, "frame_interval": needs.frame_interval}}


def _requirements(folder: Path, policy: str) -> Requirements:
    """What the policy saw: the inverse of `eyes_of`."""
    described = read_parts(folder, "policy")[policy]
    if eyes := described.get("eyes"):
        cameras = {name: Pyramid.model_validate_json(json.dumps(eye)) for name, eye in eyes["cameras"].items()}
        return Requirements(cameras, frame_interval=eyes["frame_interval"])
    if {"training", "network"} <= described["identity"].get("card", {}).keys():
        card = PolicyCard.model_validate_json(json.dumps(described["identity"]["card"]), strict=True)
        return Requirements(card.cameras, frame_interval=card.execute)
    return Requirements()


def _changed_environment(folder: Path, name: str) -> list[str]:
    same = read_parts(folder, "environment")[name] == environment_identity(name)
    return [] if same else [f"the card or the files of {name}"]
