"""Policies by name, folder, module and file; what does not load is refused by rule, value and remedy."""

import pickle
import sys
import tomllib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import tomli_w
import torch
from conftest import BRIEF_STEPS
from tiny import save_tiny

from mrvlm_sim.agents.baselines import NoOpPolicy, RandomPolicy, ScriptedExpert
from mrvlm_sim.agents.policy import check_compatible, requirements_of
from mrvlm_sim.agents.registry import arm_cards, load_policy, policy_identity, policy_name, shipped_arms
from mrvlm_sim.agents.trained import CARD, WEIGHTS, TrainedPolicy, sha256
from mrvlm_sim.cards import differences
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.catalogue import catalogue
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import run_episode
from mrvlm_sim.evaluation.tables import reference_among
from mrvlm_sim.sim.env import ManipulationEnv


def rewrite_weights(folder: Path, content: bytes) -> None:
    """Other weights, and their hash on the card."""
    old = sha256(folder / WEIGHTS)
    (folder / WEIGHTS).write_bytes(content)
    card = folder / CARD
    card.write_text(card.read_text().replace(old, sha256(folder / WEIGHTS)))


def refusal(reference: str) -> str:
    with pytest.raises(UserError) as error:
        load_policy(reference)
    return str(error.value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [*sys.path])
    return folder


POLICY_SOURCE = """
import numpy as np

class Still:
    def reset(self, episodes):
        self.batch = len(episodes)

    def act(self, observations):
        return np.zeros((self.batch, 5))

class Broken(Still):
    def __init__(self):
        raise OSError("no checkpoint in /nowhere")

def make():
    return Still()

NUMBER = 3
"""


class TestLoadingByName:
    @pytest.mark.parametrize(
        ("name", "kind"), [("expert", ScriptedExpert), ("random", RandomPolicy), ("noop", NoOpPolicy)]
    )
    def test_baselines(self, name: str, kind: type) -> None:
        assert isinstance(load_policy(name), kind)

    def test_a_folder(self, tiny_folder: Path, env: ManipulationEnv) -> None:
        policy = load_policy(str(tiny_folder))
        assert isinstance(policy, TrainedPolicy)
        assert policy.card.weights is not None
        check_compatible(policy, env)

    @pytest.mark.parametrize("arm", shipped_arms(["pick_place"]))
    def test_every_shipped_arm_runs(self, arm: str, brief_env: ManipulationEnv) -> None:
        policy = load_policy(arm)
        check_compatible(policy, brief_env)
        record = run_episode(brief_env, "pick_place", policy, arm, Condition(), 0, 0)
        assert (record.error, record.steps) == ("", BRIEF_STEPS)

    @pytest.mark.parametrize("name", ["Still", "make"])
    def test_a_class_or_function_of_a_module_in_the_current_folder(self, here: Path, name: str) -> None:
        (here / "policies_in_cwd.py").write_text(POLICY_SOURCE)
        policy = load_policy(f"policies_in_cwd:{name}")
        assert type(policy).__name__ == "Still"

    def test_a_class_of_a_file(self, here: Path) -> None:
        (here / "somewhere").mkdir()
        (here / "somewhere" / "mine.py").write_text(POLICY_SOURCE)
        assert type(load_policy("somewhere/mine.py:Still")).__name__ == "Still"
        assert type(load_policy(str(here / "somewhere" / "mine.py") + ":Still")).__name__ == "Still"

    def test_a_file_with_dataclasses_and_postponed_annotations(self, here: Path) -> None:
        """Both are common in files of policies, and `dataclass` looks its module up by name."""
        head = (
            "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass C:\n    a: int\n"
        )
        (here / "modern.py").write_text(head + POLICY_SOURCE)
        assert type(load_policy("modern.py:Still")).__name__ == "Still"

    @pytest.mark.parametrize(
        ("reference", "name"),
        [("uniform-49", "uniform-49"), ("a.b:Mine", "Mine"), ("a/b.py:Mine", "Mine"), ("runs/mine/", "mine")],
    )
    def test_what_it_is_called_in_tables(self, reference: str, name: str) -> None:
        assert policy_name(reference) == name


class TestSettings:
    """`[execute=1]` after a trained policy: the same weights, looking in every step."""

    def test_it_looks_more_often_and_is_another_policy(self, tiny_folder: Path) -> None:
        plain, set_so = str(tiny_folder), f"{tiny_folder}[execute=1]"
        often, seldom = load_policy(set_so), load_policy(plain)
        assert requirements_of(often).frame_interval == 1 < requirements_of(seldom).frame_interval
        assert policy_name(set_so) == f"{policy_name(plain)}[execute=1]"
        cards = [policy_identity(reference)["card"] for reference in (plain, set_so)]
        assert list(differences(*cards)) == [("execute", cards[0]["execute"], 1)]

    def test_of_an_arm(self) -> None:
        assert requirements_of(load_policy("uniform-49[execute=2]")).frame_interval == 2
        assert policy_name("uniform-49[ execute = 2 ]") == "uniform-49[execute=2]"

    def test_a_folder_of_that_very_name_is_meant(self, tiny_folder: Path) -> None:
        folder = tiny_folder.rename(tiny_folder.with_name("odd[execute=1]"))
        assert requirements_of(load_policy(str(folder))).frame_interval > 1

    @pytest.mark.parametrize(
        ("reference", "message"),
        [
            ("uniform-49[execute=1", "Did you mean 'uniform-49'"),
            ("uniform-49[execute=1;execute=2]", "sets execute twice"),
            ("uniform-49[exec=1]", "unknown setting of a policy 'exec'. Did you mean 'execute'"),
            ("uniform-49[execute=9]", "execute=9: execute must be at most network.chunk = 8, not 9"),
            ("uniform-49[execute=0]", "execute=0: Input should be greater than or equal to 1"),
            ("uniform-49[execute=often]", "execute=often: Input should be a valid integer"),
            ("uniform-48[execute=1]", "Did you mean 'uniform-49'"),
            ("expert[execute=1]", "Did you mean 'expert'"),
        ],
    )
    def test_what_cannot_be_set(self, reference: str, message: str) -> None:
        assert message in refusal(reference)


class TestPlugins:
    @pytest.fixture
    def installed(self, here: Path) -> Path:
        """A distribution that offers one policy that works and one that does not."""
        (here / "theirs.py").write_text(POLICY_SOURCE)
        told = here / "theirs-1.0.dist-info"
        told.mkdir()
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        (told / "entry_points.txt").write_text("[mrvlm_sim.policies]\nstill = theirs:Still\nlost = nowhere:Lost\n")
        sys.path.insert(0, str(here))
        sys.modules.pop("theirs", None)
        return here

    def test_a_policy_of_another_package(self, installed: Path) -> None:
        assert type(load_policy("still")).__name__ == "Still"
        assert policy_identity("still") == {"entry point": "theirs:Still", "version": "1.0"}
        assert "Did you mean 'still'" in refusal("stil")

    def test_one_that_cannot_be_imported_does_not_hide_the_others(self, installed: Path) -> None:
        assert "module 'nowhere' cannot be imported" in refusal("lost")
        shown = catalogue()["plugins"].set_index("name")[""]
        assert shown["still"] == "theirs:Still"
        assert shown["lost"].startswith("nowhere:Lost cannot be imported: ModuleNotFoundError")


class TestRefusedNames:
    def test_an_unknown_name_shows_the_nearest_and_the_list(self) -> None:
        message = refusal("exprt")
        assert "'exprt'" in message
        assert "Did you mean 'expert'?" in message
        assert [name for name in (*arm_cards(), "expert", "random", "noop") if name not in message] == []

    def test_a_missing_class_shows_the_nearest(self, here: Path) -> None:
        (here / "mine.py").write_text(POLICY_SOURCE)
        message = refusal("mine.py:Stil")
        assert "mine.py" in message
        assert "Did you mean 'Still'?" in message

    def test_missing_modules_and_files(self, here: Path) -> None:
        assert "no_such_module" in refusal("no_such_module:Mine")
        assert "no file nowhere.py" in refusal("nowhere.py:Mine")
        assert "file.py:Name" in refusal("mine.py:")

    @pytest.mark.parametrize(
        ("source", "named"),
        [
            ("raise RuntimeError('half done')", "RuntimeError: half done"),
            ("import no_such_package", "no_such_package"),
            ("def broken(:\n", "SyntaxError"),
            ("raise SystemExit('no licence')", "no licence"),
        ],
    )
    def test_a_file_that_cannot_be_imported(self, here: Path, source: str, named: str) -> None:
        (here / "faulty.py").write_text(source)
        message = refusal("faulty.py:Mine")
        assert "faulty.py cannot be imported" in message
        assert named in message

    def test_a_class_that_cannot_be_made(self, here: Path) -> None:
        (here / "mine.py").write_text(POLICY_SOURCE)
        message = refusal("mine.py:Broken")
        assert "mine.py:Broken() failed" in message
        assert "OSError: no checkpoint in /nowhere" in message

    def test_what_is_no_class(self, here: Path) -> None:
        (here / "mine.py").write_text(POLICY_SOURCE)
        assert "must be a class or function that makes a policy, not int" in refusal("mine.py:NUMBER")


class TestDamagedWeights:
    def test_weights_that_are_not_the_cards(self, tiny_folder: Path) -> None:
        weights = tiny_folder / WEIGHTS
        said = sha256(weights)
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        message = refusal(str(tiny_folder))
        assert [word for word in (str(weights), said, sha256(weights), "retrain") if word not in message] == []

    @pytest.mark.parametrize("kept", [0.0, 0.0001, 0.01, 0.5, 0.999])
    def test_truncated_weights_with_the_right_hash(self, tiny_folder: Path, kept: float) -> None:
        content = (tiny_folder / WEIGHTS).read_bytes()
        rewrite_weights(tiny_folder, content[: int(kept * len(content))])
        assert f"{tiny_folder / WEIGHTS} does not fit the network on its card" in refusal(str(tiny_folder))

    def test_a_pickle_under_the_name_of_weights(self, tiny_folder: Path) -> None:
        rewrite_weights(tiny_folder, pickle.dumps({"weights": np.zeros(3)}))
        assert str(tiny_folder / WEIGHTS) in refusal(str(tiny_folder))

    def test_weights_of_another_shape(self, tiny_folder: Path, tmp_path: Path) -> None:
        wider = save_tiny(tmp_path / "wider", width=32)
        rewrite_weights(tiny_folder, (wider / WEIGHTS).read_bytes())
        message = refusal(str(tiny_folder))
        assert str(tiny_folder / WEIGHTS) in message
        assert "size mismatch" in message

    def test_missing_and_additional_tensors(self, tiny_folder: Path) -> None:
        state = safetensors.torch.load_file(tiny_folder / WEIGHTS)
        rewrite_weights(tiny_folder, safetensors.torch.save({**state, "surplus": torch.zeros(1)}))
        assert "surplus" in refusal(str(tiny_folder))
        state.pop("norm.weight")
        rewrite_weights(tiny_folder, safetensors.torch.save(state))
        assert "norm.weight" in refusal(str(tiny_folder))

    def test_an_untrained_arm_says_how_to_train_it(self, tiny_folder: Path) -> None:
        text = (tiny_folder / CARD).read_text()
        (tiny_folder / CARD).write_text(text[: text.index("[weights]")])
        assert "mrvlm-sim train bc --arm tiny" in refusal(str(tiny_folder))

    def test_missing_weights_say_how_to_train(self, tiny_folder: Path) -> None:
        (tiny_folder / WEIGHTS).unlink()
        assert "mrvlm-sim train bc" in refusal(str(tiny_folder))

    def test_a_folder_without_a_card(self, tmp_path: Path) -> None:
        assert str(tmp_path / CARD) in refusal(str(tmp_path))


class TestWhoIsRunByDefault:
    KNOWN: ClassVar = {
        "one": ["reach"],
        "both": ["reach", "push"],
        "worded": ["reach[phrase=hier]", "push"],
        "untrained": ["stack"],
    }

    @pytest.fixture(autouse=True)
    def _arms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cards = {}
        for name, environments in self.KNOWN.items():
            card = save_tiny(tmp_path / name) / CARD
            values = tomllib.loads(card.read_text()) | {"environments": environments}
            if name == "untrained":
                del values["weights"]
            card.write_text(tomli_w.dumps(values))
            cards[name] = card
        monkeypatch.setattr("mrvlm_sim.agents.registry.arm_cards", lambda: cards)

    @pytest.mark.parametrize(
        ("asked", "found"),
        [
            (["reach"], ["one"]),  # specialists first
            (["reach[max_steps=3]"], ["one"]),
            (["reach", "push"], ["both", "worded"]),
            (["push"], ["both", "worded"]),  # nobody knows only this
            (["reach", "stack"], []),
            (["stack"], []),
        ],
    )
    def test_specialists_or_else_generalists(self, asked: list[str], found: list[str]) -> None:
        assert shipped_arms(asked) == found


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["a", "uniform-256"], "uniform-256"),
        (["a", "generalist/uniform-256"], "generalist/uniform-256"),
        (["not-uniform-256"], "uniform-256"),
        ([], "uniform-256"),
    ],
)
def test_the_reference_may_be_called_by_its_last_name(names: list[str], meant: str) -> None:
    assert reference_among(names, "uniform-256") == meant
