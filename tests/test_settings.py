"""Knobs of an environment are set from outside, checked like its card, and leave the episodes what they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrvlm_sim.agents.baselines import NoOpPolicy, RandomPolicy, ScriptedExpert
from mrvlm_sim.agents.registry import shipped_arms
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.evaluation.runs import environment_identity
from mrvlm_sim.seeding import integer_seed
from mrvlm_sim.tasks import environment_card, make_env, split_settings, with_settings


def test_a_reference_says_what_was_set() -> None:
    reference = with_settings("pick_place", ["pick_place.objects=[4, 4]", "pick_place.max_steps = 7"])
    assert reference == "pick_place[max_steps=7;objects=[4, 4]]"
    assert split_settings(reference) == ("pick_place", {"max_steps": 7, "objects": [4, 4]})
    card, _ = environment_card(reference)
    assert (card.max_steps, card.parameters["objects"]) == (7, [4, 4])


def test_without_settings_it_is_the_name() -> None:
    assert with_settings("pick_place", []) == "pick_place"
    assert split_settings("metaworld/reach-v3") == ("metaworld/reach-v3", {})


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.integers() | st.booleans(), min_size=1))
def test_values_come_back(settings: dict) -> None:
    pairs = [f"x.{knob}={str(value).lower()}" for knob, value in settings.items()]
    assert split_settings(with_settings("x", pairs)) == ("x", settings)


def test_the_last_of_two_counts() -> None:
    assert with_settings("x", ["x.a=1", "x.a=2"]) == "x[a=2]"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("spacing", "must be ENVIRONMENT.KNOB=VALUE"),
        ("pick_place.spacing", "must be ENVIRONMENT.KNOB=VALUE"),
        ("pick_place.spacing=", "must be ENVIRONMENT.KNOB=VALUE"),
        ("reach.spacing=1", "knobs begin with 'pick_place'"),
        ("pick_place.spacng=0.1", "Did you mean 'spacing'"),
        ("pick_place.spacing=0.5", "less than or equal to 0.12"),
        ("pick_place.spacing=wide", "valid number"),
        ("pick_place.reward=often", "'sparse' or 'dense'"),
        ("pick_place.max_steps=0", "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env(with_settings("pick_place", [setting]))


def test_environments_of_other_packages_have_none() -> None:
    with pytest.raises(UserError, match="has no knobs here"):
        make_env("metaworld/reach-v3[max_steps=3]")


def test_the_episodes_are_the_same() -> None:
    shorter = "pick_place[max_steps=5]"
    assert integer_seed(0, shorter, 3, "initial state") == integer_seed(0, "pick_place", 3, "initial state")
    records = []
    for name in ("pick_place", shorter):
        env = make_env(name)
        records.append(run_episode(env, name, ScriptedExpert(), "expert", Condition(), 0, 3))
        env.close()
    plain, short = records
    assert (short.start_hash, short.steps, short.actions) == (plain.start_hash, 5, plain.actions[: 5 * 5 * 4])


def test_it_is_another_environment_for_a_run_but_has_the_same_arms() -> None:
    assert environment_identity("pick_place") != environment_identity("pick_place[max_steps=5]")
    assert shipped_arms(["pick_place[max_steps=5]"]) == shipped_arms(["pick_place"]) != []


def test_a_dense_reward_grows_towards_the_goal() -> None:
    env = make_env("pick_place[reward=dense]")
    env.reset(seed=0)
    rewards, over = [], False
    while not over:
        _, reward, terminated, truncated, _ = env.step(env.expert_action())
        rewards.append(reward)
        over = terminated or truncated
    env.close()
    assert np.all((np.array(rewards) >= -1) & (np.array(rewards) <= 0))
    assert rewards[-1] == 0 > rewards[-2] > rewards[0]


def test_with_a_dense_reward_success_is_worth_more_than_to_wait() -> None:
    returns = {}
    for policy in (ScriptedExpert(), NoOpPolicy(), RandomPolicy()):
        env = make_env("reach[reward=dense]")
        record = run_episode(env, "reach", policy, "p", Condition(), 0, 0)
        env.close()
        returns[type(policy)] = record.reward
    assert returns[ScriptedExpert] > max(returns[NoOpPolicy], returns[RandomPolicy])
