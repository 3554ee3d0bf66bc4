"""Instructions in the user's own words: accepted in any language, or empty, and scored."""

from contextlib import closing

import numpy as np
import pytest

from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.sim.card import environment_cards, is_external
from mrvlm_sim.tasks import make_own_env, make_task, with_settings
from mrvlm_sim.tasks.tabletop import LONGEST_PHRASE

OWN = [name for name, path in environment_cards().items() if not is_external(path)]
PHRASES = ['""', "把 {thing} 放到 {goal} 上", "{ }}{0} {thing", "lege {thing} auf {goal}, aber {weit} weg"]


@pytest.mark.parametrize("phrase", PHRASES)
@pytest.mark.parametrize("name", OWN)
def test_any_words_are_accepted_and_scored(name: str, phrase: str, tiny: TrainedPolicy) -> None:
    reference = with_settings(name, [f"{name}.phrase={phrase}", f"{name}.max_steps=5"])
    with closing(make_own_env(reference)) as env:
        record = run_episode(env, name, tiny, "tiny", Condition(), 0, 0)
        said = phrase.strip('"')
        for slot, word in env.task.words.items():
            said = said.replace(f"{{{slot}}}", word)
    assert (record.error, record.steps, record.instruction) == ("", 5, said)


def test_they_change_nothing_else() -> None:
    with closing(make_own_env("reach")) as plain, closing(make_own_env("reach[phrase=da {thing}]")) as other:
        for seed in range(5):
            (seen, _), (seen_too, _) = plain.reset(seed=seed), other.reset(seed=seed)
            assert (seen["proprio"] == seen_too["proprio"]).all()
            assert (plain.data.qpos == other.data.qpos).all()
            assert other.instruction == f"da {plain.task.words['thing']}"


@pytest.mark.parametrize("name", OWN)
def test_relabelling_uses_the_same_words(name: str) -> None:
    with closing(make_own_env(name)) as env:
        env.reset(seed=0)
        landmarks = np.repeat(env.task.landmarks(env.scene)[None], 5, axis=0)
    said, _ = make_task(f"{name}[phrase=hier]").relabel(landmarks, np.random.default_rng(0))
    assert said == ["hier"] * 5


def test_too_many_words_are_refused() -> None:
    make_task(f"reach[phrase={'a' * LONGEST_PHRASE}]")
    with pytest.raises(UserError, match=rf"at most {LONGEST_PHRASE} bytes of UTF-8, not {LONGEST_PHRASE + 1}"):
        make_task(f"reach[phrase={'ß' * (LONGEST_PHRASE // 2)}a]")
