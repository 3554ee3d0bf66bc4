"""Models of stable-baselines3: what they see and do, and what is refused, above all to unpickle without leave."""

import json
import re
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import BRIEF_STEPS
from gymnasium import spaces
from processes import start
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from tiny import PYRAMID

from mrvlm_sim.agents.policy import batch_of_one, requirements_of
from mrvlm_sim.agents.registry import load_for, load_policy, policy_identity, policy_name
from mrvlm_sim.agents.remote import RemotePolicy
from mrvlm_sim.agents.sb3 import SB3Policy
from mrvlm_sim.agents.serve import policy_server
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.loading import load_object
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.wrappers import MultiResolutionTokens

PROPRIO = spaces.Box(-np.inf, np.inf, (7,), np.float32)
BODY = spaces.Dict({"proprio": PROPRIO})
ACTIONS = spaces.Box(-1, 1, (5,), np.float32)
CARD = f"""
[cameras.wrist]
frame_size = {PYRAMID.frame_size}
patch = {PYRAMID.patch}
grids = {list(PYRAMID.grids)}
"""


NETWORK = """
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

class Doubled(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=7)

    def forward(self, observations):
        return 2 * observations["proprio"]
"""


class Still(gymnasium.Env):
    """Spaces to make a model of."""

    def __init__(self, seen: spaces.Space = BODY, actions: spaces.Space = ACTIONS) -> None:
        self.observation_space, self.action_space = seen, actions


def save(folder: Path, algorithm: Callable[..., BaseAlgorithm] = PPO, env: Any = None, **options: Any) -> Path:
    """An untrained model, saved; its actions depend on what it sees."""
    env = env or Still()
    kind = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    network = {"net_arch": [4], **options.pop("policy_kwargs", {})}
    model = algorithm(kind, env, policy_kwargs=network, device="cpu", seed=0, **options)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "action_net" in name:
                parameter.mul_(50)
    model.save(folder / "model.zip")
    return folder / "model.zip"


def load(path: Path) -> SB3Policy:
    policy = load_policy(str(path), trust_pickle=True)
    assert isinstance(policy, SB3Policy)
    return policy


def refusal(path: Path, trust_pickle: bool = True) -> str:
    with pytest.raises(UserError) as error:
        load_policy(str(path), trust_pickle)
    assert str(path) in str(error.value) or str(path.with_suffix(".toml")) in str(error.value)
    return str(error.value)


def rewrite(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Another content of one file in the archive."""
    with zipfile.ZipFile(path) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in files.items():
            archive.writestr(each, change(content) if each == name else content)


def run(env: ManipulationEnv, policy: Any) -> EpisodeRecord:
    return run_episode(env, "pick_place", policy, "mine", Condition(), 0, 0)


def actions_of(record: EpisodeRecord) -> np.ndarray:
    return np.frombuffer(record.actions, np.float32).reshape(-1, 5)


class TestWhatItDoes:
    @pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, TD3, DDPG])
    def test_any_algorithm_acts_as_it_would_itself(
        self, algorithm: type[BaseAlgorithm], tmp_path: Path, brief_env: ManipulationEnv
    ) -> None:
        path = save(tmp_path, algorithm)
        policy = load_for(str(path), brief_env, trust_pickle=True)
        assert policy_name(str(path)) == "model"
        record = run(brief_env, policy)
        assert (record.error, record.steps) == ("", BRIEF_STEPS)
        itself = algorithm.load(path, device="cpu", custom_objects={"buffer_size": 1})
        seen, _ = MultiResolutionTokens(brief_env, {}).reset(seed=3)
        expected, _ = itself.predict({"proprio": seen["proprio"]}, deterministic=True)
        policy.reset([None])  # type: ignore[list-item]
        assert (policy.act(batch_of_one(seen)) == expected).all()

    def test_exploration_that_depends_on_the_state(self, tmp_path: Path, brief_env: ManipulationEnv) -> None:
        assert run(brief_env, load(save(tmp_path, use_sde=True))).error == ""

    def test_buffers_of_the_training_are_not_made_again(self, tmp_path: Path) -> None:
        """A million frames would not fit into memory."""
        frames = Still(spaces.Dict({"wrist/tokens": spaces.Box(0, 255, (48, 192), np.uint8)}))
        path = save(tmp_path, SAC, frames, buffer_size=1)
        rewrite(path, "data", lambda data: json.dumps(json.loads(data) | {"buffer_size": 10**9}).encode())
        path.with_suffix(".toml").write_text(CARD)
        assert load(path).requirements.cameras["wrist"].grids == (4, 4, 4)

    def test_trained_in_the_environment_itself(self, tmp_path: Path, brief_env: ManipulationEnv) -> None:
        """With proprioception and the instruction as bytes."""
        env = gymnasium.make("mrvlm_sim/PickPlace-v0")
        path = save(tmp_path, PPO, env, n_steps=2, batch_size=2)
        env.close()
        record = run(brief_env, load_for(str(path), brief_env, trust_pickle=True))
        assert (record.error, record.steps) == ("", BRIEF_STEPS)

    def test_it_looks_through_its_card(self, tmp_path: Path, brief_env: ManipulationEnv) -> None:
        wrapped = MultiResolutionTokens(brief_env, {"wrist": PYRAMID})
        path = save(tmp_path, PPO, Still(wrapped.observation_space), n_steps=2, batch_size=2)
        path.with_suffix(".toml").write_text(CARD + "[cameras.wrist.jitter]\ntremor = 0.1\n")
        policy = load_for(str(path), brief_env, trust_pickle=True)
        assert requirements_of(policy).cameras == {"wrist": PYRAMID}
        record = run(brief_env, policy)
        assert (record.error, record.steps) == ("", BRIEF_STEPS)
        assert np.ptp(actions_of(record), axis=0).max() > 0, "it sees something"

    def test_a_network_of_the_users_own_in_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief_env: ManipulationEnv
    ) -> None:
        module = tmp_path / "my_network.py"
        module.write_text(NETWORK)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", [*sys.path])
        path = save(tmp_path, policy_kwargs={"features_extractor_class": load_object("my_network:Doubled")})
        assert run(brief_env, load(path)).error == ""
        module.unlink()
        monkeypatch.delitem(sys.modules, "my_network")
        assert "ModuleNotFoundError: No module named 'my_network'" in refusal(path)

    @pytest.mark.parametrize(("keys", "chosen"), [(("state", "proprio"), "state"), (("proprio",), "proprio")])
    def test_a_vector_is_the_environments_own_state_or_else_the_body(
        self, keys: tuple[str, ...], chosen: str, tmp_path: Path
    ) -> None:
        policy = load(save(tmp_path, PPO, Still(PROPRIO)))
        seen: dict[str, Any] = {key: np.full((1, 7), i, np.float32) for i, key in enumerate(keys, 1)}
        policy.reset([None])  # type: ignore[list-item]
        acted = policy.act({**seen, "instruction": ["go"]})
        assert (acted == policy.network.predict(seen[chosen], deterministic=True)[0]).all()

    def test_a_recurrent_network_remembers_until_the_episode_ends(self, tmp_path: Path) -> None:
        policy = load(save(tmp_path))
        told: list[tuple[Any, list[bool]]] = []

        def predict(seen: Any, state: Any, begins: np.ndarray, deterministic: bool) -> tuple[np.ndarray, int]:
            told.append((state, begins.tolist()))
            return np.zeros((2, 5)), len(told)

        policy.network.predict = predict  # type: ignore[method-assign, assignment]
        for steps in (2, 1):
            policy.reset([None, None])  # type: ignore[list-item]
            for _ in range(steps):
                policy.act({"proprio": np.zeros((2, 7), np.float32), "instruction": ["go", "go"]})
        assert told == [(None, [True, True]), (1, [False, False]), (None, [True, True])]

    def test_it_can_be_served(self, tmp_path: Path, brief_env: ManipulationEnv) -> None:
        path = save(tmp_path)
        with pytest.raises(UserError, match="--trust-pickle"):
            policy_server(str(path), "127.0.0.1", 0)
        with policy_server(str(path), "127.0.0.1", 0, trust_pickle=True) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            remote = RemotePolicy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
            assert actions_of(run(brief_env, remote)).tolist() == actions_of(run(brief_env, load(path))).tolist()
            remote.close()
            server.shutdown()
            thread.join()

    def test_what_it_is(self, tmp_path: Path) -> None:
        path = save(tmp_path)
        first = policy_identity(str(path))
        path.with_suffix(".toml").write_text("frame_interval = 2")
        second = policy_identity(str(path))
        assert first["model"] == second["model"]
        assert re.fullmatch("[0-9a-f]{64}", first["model"])
        assert (first["card"]["frame_interval"], second["card"]["frame_interval"]) == (1, 2)


class TestRefused:
    def test_to_unpickle_without_leave(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path)

        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("unpickles")

        for name in ("pickle.load", "pickle.loads", "cloudpickle.loads", "torch.load"):
            monkeypatch.setattr(name, forbidden)
        message = refusal(path, trust_pickle=False)
        assert [word for word in ("any code", "whoever made the file", "--trust-pickle") if word not in message] == []

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert "cannot be read: No such file" in refusal(tmp_path / "model.zip")

    @pytest.mark.parametrize("trust_pickle", [True, False])
    @pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
    def test_a_truncated_file(self, kept: float, trust_pickle: bool, tmp_path: Path) -> None:
        path = save(tmp_path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        assert "is no model that stable-baselines3 saved, or is damaged" in refusal(path, trust_pickle)

    @pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b'{"policy_class": {}}', b"\xff"])
    def test_another_archive(self, data: bytes, tmp_path: Path) -> None:
        path = save(tmp_path)
        rewrite(path, "data", lambda _: data)
        assert "is no model that stable-baselines3 saved" in refusal(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("holiday.jpg", b"")
        assert "There is no item named 'data'" in refusal(path)

    def test_damaged_weights(self, tmp_path: Path) -> None:
        path = save(tmp_path)
        rewrite(path, "policy.pth", lambda content: content[: len(content) // 2])
        assert "cannot be loaded here" in refusal(path)

    def test_a_pickle_that_does_not_load(self, tmp_path: Path) -> None:
        path = save(tmp_path)
        broken = {"policy_class": {":type:": "x", ":serialized:": "Y29zCm5vX3N1Y2gKLg=="}}  # os.no_such
        rewrite(path, "data", lambda data: json.dumps(json.loads(data) | broken).encode())
        message = refusal(path)
        assert "Could not deserialize object policy_class" in message
        assert "no_such" in message

    @pytest.mark.parametrize(
        ("algorithm", "actions", "said"),
        [
            (DQN, spaces.Discrete(4), ["Discrete(4)", "vectors in [-1, 1]", "PPO, SAC or TD3"]),
            (PPO, spaces.MultiBinary(4), ["MultiBinary(4)", "vectors in [-1, 1]"]),
            (SAC, spaces.Box(-2, 1, (5,)), ["between [-2.0", "[-1, 1]", "RescaleAction(env, -1, 1)"]),
        ],
    )
    def test_other_actions(
        self, algorithm: type[BaseAlgorithm], actions: spaces.Space, said: list[str], tmp_path: Path
    ) -> None:
        message = refusal(save(tmp_path, algorithm, Still(actions=actions)))
        assert [word for word in said if word not in message] == []

    def test_tokens_without_a_card_and_a_card_without_tokens(self, tmp_path: Path) -> None:
        path = save(tmp_path)
        path.with_suffix(".toml").write_text(CARD)
        assert "has a camera wrist, and the model does not look through it, but sees proprio" in refusal(path)
        path.with_suffix(".toml").unlink()
        path = save(tmp_path, PPO, Still(spaces.Dict({"wrist/tokens": spaces.Box(0, 255, (48, 192), np.uint8)})))
        message = refusal(path)
        assert f"looks through the camera wrist, and how is for {path.with_suffix('.toml')} to say" in message
        path.with_suffix(".toml").write_text(message[message.index("\n") :])
        assert load(path).requirements.cameras["wrist"].patch == 8

    def test_a_malformed_card(self, tmp_path: Path) -> None:
        path = save(tmp_path)
        path.with_suffix(".toml").write_text("frame_intervall = 2")
        assert "unknown key 'frame_intervall'; did you mean 'frame_interval'?" in refusal(path)

    @pytest.mark.parametrize(
        ("seen", "said"),
        [
            (spaces.Dict({"goal": PROPRIO}), ["'goal'", "Known: instruction, proprio"]),
            (spaces.Dict({"proprio": spaces.Box(-1, 1, (9,))}), ["proprio as float32 (9,)", "shows float32 (7,)"]),
            (spaces.Dict({"proprio": spaces.Box(0, 9, (7,), np.uint8)}), ["as uint8 (7,)", "shows float32 (7,)"]),
            (spaces.Box(-1, 1, (39,)), ["sees float32 (39,)", "shows proprio (7,)"]),
        ],
    )
    def test_what_the_environment_does_not_show(
        self, seen: spaces.Space, said: list[str], tmp_path: Path, env: ManipulationEnv
    ) -> None:
        path = save(tmp_path, PPO, Still(seen))
        with pytest.raises(UserError) as error:
            load_for(str(path), env, trust_pickle=True)
        assert [word for word in (str(path), *said) if word not in str(error.value)] == []

    def test_another_number_of_actions(self, tmp_path: Path, env: ManipulationEnv) -> None:
        path = save(tmp_path, PPO, Still(actions=spaces.Box(-1, 1, (4,), np.float32)))
        with pytest.raises(UserError, match="SB3Policy gives actions of size 4"):
            load_for(str(path), env, trust_pickle=True)


@pytest.mark.slow
class TestCommandLine:
    COMMAND = "eval --env pick_place --no-baselines --episodes 2 --workers 1 --output run --policy model.zip"

    def test_without_leave(self, tmp_path: Path) -> None:
        save(tmp_path)
        with start(*self.COMMAND.split(), cwd=tmp_path) as process:
            _, err = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "--trust-pickle" in err
        assert "Traceback" not in err

    def test_with_leave_in_a_worker_process(self, tmp_path: Path) -> None:
        save(tmp_path)
        with start(*self.COMMAND.split(), "--trust-pickle", cwd=tmp_path) as process:
            _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        rows = read_episodes(tmp_path / "run")
        assert rows["policy"].tolist() == ["model", "model"]
        assert rows["error"].tolist() == ["", ""]
