"""Policies behind openpi's protocol, against a server written from that protocol's published description."""

import re
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from conftest import BRIEF_STEPS
from processes import start
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from mrvlm_sim.agents.openpi import OpenPiCard, OpenPiPolicy
from mrvlm_sim.agents.policy import EpisodeStart, batch_of_one, check_compatible
from mrvlm_sim.agents.registry import load_for, load_policy, policy_identity, policy_name
from mrvlm_sim.cards import read_card
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.evaluation.tables import policy_cost
from mrvlm_sim.paths import CHECKOUT
from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.wrappers import MultiResolutionTokens

Infer = Callable[[dict[str, Any]], Any]


def encode(value: Any) -> Any:
    """Arrays and numbers with a dtype as openpi's `msgpack_numpy` describes them."""
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return value


def decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    return value


def packed(message: Any) -> bytes:
    return msgpack.packb(message, default=encode)


class Server:
    """Sends its metadata, then one answer for every observation; a failure is a traceback in text, and the end.

    `infer` may return bytes or text, which are sent as they are, or None for no answer at all.
    """

    def __init__(self, infer: Infer, metadata: Any) -> None:
        self.infer, self.metadata = infer, metadata
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []  # Authorization of each connection

    def handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.keys.append(connection.request.headers.get("Authorization"))
        connection.send(packed(self.metadata))
        while True:
            try:
                observation = msgpack.unpackb(connection.recv(), object_hook=decode)
            except ConnectionClosed:
                return
            self.seen.append(observation)
            try:
                answer = self.infer(observation)
                if isinstance(answer, dict):
                    answer = packed(answer | {"server_timing": {"infer_ms": np.float64(1.5)}})
            except ConnectionAbortedError:
                return
            except Exception:
                connection.send(traceback.format_exc())
                connection.close(1011, "Internal server error. Traceback included in previous frame.")
                return
            if answer is not None:
                connection.send(answer)


@contextmanager
def serving(infer: Infer, metadata: Any = None) -> Iterator[tuple[str, Server]]:
    """Address and server."""
    server = Server(infer, metadata or {"policy": "pi0", "reset_pose": np.zeros(3)})
    with listen(server.handle, "127.0.0.1", 0, compression=None, max_size=None) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"openpi://127.0.0.1:{listening.socket.getsockname()[1]}", server
        listening.shutdown()
        thread.join()


def chunk(*first: float, steps: int = 10, size: int = 5) -> dict[str, Any]:
    """Actions whose first column counts the steps, in hundredths, after the numbers given."""
    actions = np.zeros((steps, size), np.float32)
    actions[:, 0] = np.arange(steps) / 100
    actions[:, 1 : 1 + len(first)] = first
    return {"actions": actions}


def patient(address: str, **card: Any) -> OpenPiPolicy:
    return OpenPiPolicy(OpenPiCard(address=address, **({"patience": 5.0} | card)))


def run(env: ManipulationEnv, policy: Any, episode: int = 0) -> EpisodeRecord:
    return replace(run_episode(env, "pick_place", policy, "mine", Condition(), 0, episode), latency_ms=[])


def look(env: ManipulationEnv, policy: OpenPiPolicy, seed: int) -> dict[str, Any]:
    wrapped = MultiResolutionTokens(env, policy.requirements.cameras, "sensor")
    return batch_of_one(wrapped.reset(seed=seed)[0])


def starts(env: ManipulationEnv, count: int) -> list[EpisodeStart]:
    return [EpisodeStart("go", np.random.default_rng(0), env.action_size, env)] * count


class TestByItsAddress:
    def test_it_sends_what_the_examples_send_and_carries_out_half_a_chunk(self, brief_env: ManipulationEnv) -> None:
        with serving(lambda observation: chunk()) as (address, server):
            policy = load_for(address, brief_env)
            assert policy_name(address) == address.removeprefix("openpi://")
            assert policy_cost(policy) == {}, "a plain picture is no token"
            server.seen.clear()
            record = run(brief_env, policy)
            policy.close()  # type: ignore[attr-defined]
        assert (record.error, record.steps) == ("", BRIEF_STEPS)
        acted = np.frombuffer(record.actions, np.float32).reshape(-1, 5)
        assert acted[:, 0].tolist() == pytest.approx([0, 0.01, 0.02, 0.03, 0.04] * 2)
        assert len(server.seen) == 2
        for seen in server.seen:
            assert list(seen) == ["observation/image", "observation/wrist_image", "observation/state", "prompt"]
            for key in ("observation/image", "observation/wrist_image"):
                assert (seen[key].shape, seen[key].dtype) == ((224, 224, 3), np.uint8)
            assert (seen["observation/state"].shape, seen["observation/state"].dtype) == ((7,), np.float32)
            assert seen["prompt"] == record.instruction

    def test_pictures_are_the_cameras_own(self, env: ManipulationEnv) -> None:
        with serving(lambda observation: chunk()) as (address, server):
            policy = patient(address)
            observation = look(env, policy, 3)
            policy.reset(starts(env, 1))
            policy.act(observation)
            policy.close()
        (seen,) = server.seen
        for key, camera in (("observation/image", "scene"), ("observation/wrist_image", "wrist")):
            assert (seen[key] == env.renderer.frame(camera, 224)).all()
        assert (seen["observation/state"] == observation["proprio"][0]).all()

    def test_the_episodes_of_a_batch_are_asked_one_after_another(self, env: ManipulationEnv) -> None:
        with serving(lambda observation: chunk(observation["observation/state"][0])) as (address, server):
            policy = patient(address, image_size=8)
            alone = [look(env, policy, seed) for seed in (0, 1)]
            keys = [key for key in alone[0] if key != "instruction"]
            together = {key: np.concatenate([one[key] for one in alone]) for key in keys}
            policy.reset(starts(env, 2))
            actions = policy.act(together | {"instruction": ["left", "right"]})
            policy.close()
        assert actions.shape == (2, 5)
        assert actions[:, 1] == pytest.approx(together["proprio"][:, 0].clip(-1, 1), abs=1e-6)
        assert [seen["prompt"] for seen in server.seen] == ["left", "right"]

    def test_its_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(lambda observation: chunk()) as (address, server):
            monkeypatch.delenv("OPENPI_API_KEY", raising=False)
            patient(address).close()
            monkeypatch.setenv("OPENPI_API_KEY", "open sesame")
            patient(address).close()
        assert server.keys == [None, "Api-Key open sesame"]

    def test_what_it_is(self) -> None:
        with serving(lambda observation: chunk()) as (address, _):
            identity = policy_identity(address)
        assert identity["card"]["address"] == address
        assert identity["card"]["observation"]["prompt"] == "instruction"
        assert "'policy': 'pi0'" in identity["served"]


CARD = """
address = "{address}"
execute = 3
image_size = 64
action_key = "chunk"
action_columns = [0, 2, 2, 6, 1]
action_scale = [1, 2, -2, 1, -2]
action_offset = [0, 0, 0, 0, 1]

[observation]
picture = "camera:wrist"
body = "proprio"
task = "instruction"
"""


class TestByItsCard:
    def test_keys_and_actions_are_mapped(self, tmp_path: Path, brief_env: ManipulationEnv) -> None:
        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            return {"chunk": np.tile([0.1, 0.2, 0.3, 9, 9, 9, 7], (4, 1))}  # 7 is clipped to 1

        path = tmp_path / "pi0.toml"
        with serving(infer) as (address, server):
            path.write_text(CARD.format(address=address.replace("openpi", "ws")))
            policy = load_for(str(path), brief_env)
            record = run(brief_env, policy)
            policy.close()  # type: ignore[attr-defined]
        assert (record.error, record.steps) == ("", BRIEF_STEPS)
        acted = np.frombuffer(record.actions, np.float32).reshape(-1, 5)
        assert acted == pytest.approx(np.tile([0.1, 0.6, -0.6, 1, 0.6], (BRIEF_STEPS, 1)))
        assert [*server.seen[-1]] == ["picture", "body", "task"]
        assert server.seen[-1]["picture"].shape == (64, 64, 3)
        assert len(server.seen) == 1 + 4, "once before the first episode, and every third step"
        assert policy_name(str(path)) == "pi0"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"adress": "x"}, ["adress"]),
            ({"address": "localhost:8000"}, ["address", "openpi://"]),
            ({"execute": 0}, ["execute", "greater than or equal to 1"]),
            ({"action_scale": [1.0]}, ["action_scale", "one number for each of action_columns"]),
            ({"observation": {}}, ["observation", "at least 1"]),
        ],
    )
    def test_a_malformed_card(self, change: dict[str, Any], said: list[str]) -> None:
        with pytest.raises(ValueError, match=said[0]) as error:
            OpenPiCard(**({"address": "openpi://here:1"} | change))
        assert [word for word in said if word not in str(error.value)] == []

    def test_a_card_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no card at .*pi0\.toml; a OpenPiCard is expected there"):
            load_policy(str(tmp_path / "pi0.toml"))

    def test_lists_of_numbers_on_a_card_may_be_whole(self, tmp_path: Path) -> None:
        (tmp_path / "pi0.toml").write_text(CARD.format(address="openpi://here:1"))
        assert read_card(tmp_path / "pi0.toml", OpenPiCard).action_scale == (1, 2, -2, 1, -2)


def failing(observation: dict[str, Any]) -> Any:
    return observation["observation/left_image"]


def leaving(observation: dict[str, Any]) -> Any:
    raise ConnectionAbortedError


class TestBeforeTheFirstEpisode:
    def test_nobody_there(self) -> None:
        with pytest.raises(UserError, match=r"no openpi server answers at openpi://127\.0\.0\.1:9 .*start it"):
            load_policy("openpi://127.0.0.1:9")

    @pytest.mark.parametrize("address", ["openpi://", "openpi://localhost", "openpi://localhost:http"])
    def test_no_address(self, address: str) -> None:
        with pytest.raises(UserError, match=f"{address!r} must be openpi://HOST:PORT"):
            load_policy(address)

    @pytest.mark.parametrize(
        ("infer", "card", "said"),
        [
            (lambda observation: chunk(size=7), {}, r"gives 7 numbers per action, .* takes \(5,\); .*action_columns"),
            (lambda observation: chunk(steps=4), {}, r"at least 5 steps \(execute of the card\), .*float32 \(4, 5\)"),
            (lambda observation: {"action": 1}, {}, r"without 'actions' \(action_key of the card\): action"),
            (failing, {}, "cannot act here: .*KeyError: 'observation/left_image'"),
            (lambda observation: chunk(), {"action_columns": (0, 1, 2, 3, 5)}, "5 columns, not all of"),
            (lambda observation: chunk(), {"observation": {"state": "propio"}}, "'propio'. Did you mean 'proprio'"),
        ],
    )
    def test_what_does_not_fit_is_told(
        self, infer: Infer, card: dict[str, Any], said: str, env: ManipulationEnv
    ) -> None:
        with serving(infer) as (address, _):
            policy = patient(address, **card)
            with pytest.raises(UserError, match=re.compile(said, re.DOTALL)):
                policy.check_environment(env)
            policy.close()

    def test_a_camera_that_is_not_there(self, env: ManipulationEnv) -> None:
        with serving(lambda observation: chunk()) as (address, _):
            policy = patient(address, observation={"image": "camera:wirst"})
            with pytest.raises(UserError, match=r"'wirst'\. Did you mean 'wrist'"):
                check_compatible(policy, env)
            policy.close()


class TestTrouble:
    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (leaving, r"ConnectionError: ws://.* hung up"),
            (lambda observation: None, r"TimeoutError: ws://.* did not answer within 0\.5 s"),
            (lambda observation: b"\xc1garbage", "ValueError: not a MessagePack message"),
            (lambda observation: packed([1, 2]), "ValueError: a message must be a map, not list"),
            (lambda observation: packed({"actions": {b"__ndarray__": True, b"data": b"", b"dtype": "O", b"shape": []}}),
             "arrays must be of numbers, not object"),
            (failing, "ValueError: a message must be binary, this one is text: .*KeyError"),
            (lambda observation: {"actions": np.zeros(5)}, r"it answered with float64 \(5,\)"),
            (lambda observation: {"actions": [["left"] * 5] * 5}, "must answer with numbers"),
            (lambda observation: chunk(size=7), r"ValueError: act must return shape \(1, 5\), it returned \(1, 7\)"),
            (lambda observation: chunk(np.nan), "must return finite numbers"),
        ],
    )  # fmt: skip
    def test_it_costs_the_episode(self, answer: Infer, error: str, brief_env: ManipulationEnv) -> None:
        with serving(answer) as (address, _):
            policy = patient(address, patience=0.5, image_size=8)
            for episode in (0, 1):
                record = run(brief_env, policy, episode)
                assert re.search(error, record.error, re.DOTALL), record.error
                assert not record.success
            policy.close()

    def test_after_trouble_it_connects_anew(self, brief_env: ManipulationEnv) -> None:
        answered: list[int] = []

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            answered.append(1)
            return chunk() if len(answered) != 2 else failing(observation)

        with serving(infer) as (address, server):
            policy = patient(address, image_size=8)
            assert "KeyError" in run(brief_env, policy, 0).error
            assert run(brief_env, policy, 0).error == ""
            policy.close()
        assert len(server.keys) == 2

    def test_a_late_answer_is_not_taken_for_the_next(self, brief_env: ManipulationEnv) -> None:
        answered: list[int] = []

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            answered.append(1)
            if len(answered) == 1:
                time.sleep(1)
            return chunk(0.5 if len(answered) == 1 else 0.0)

        with serving(infer) as (address, _):
            policy = patient(address, patience=0.3, image_size=8)
            assert "TimeoutError" in run(brief_env, policy, 0).error
            acted = np.frombuffer(run(brief_env, policy, 0).actions, np.float32).reshape(-1, 5)
            policy.close()
        assert (acted[:, 1] == 0).all()


def test_the_card_in_the_readme() -> None:
    (source,) = re.findall(r"```toml\n(address.*?)```", (CHECKOUT / "README.md").read_text(), flags=re.DOTALL)
    card = OpenPiCard.model_validate(tomllib.loads(source))
    assert len(card.action_columns or ()) == 5
    shown = {key: getattr(card, key) for key in ("execute", "image_size", "patience", "action_key")}
    assert shown == {key: OpenPiCard.model_fields[key].default for key in shown}, "it shows the defaults"


def test_the_command_line(tmp_path: Path) -> None:
    with serving(lambda observation: chunk()) as (address, _):
        (tmp_path / "pi0.toml").write_text(f'address = "{address}"\nimage_size = 64\n')
        arguments = "eval --env pick_place --no-baselines --episodes 1 --workers 1 --output run --policy pi0.toml"
        with start(*arguments.split(), cwd=tmp_path) as process:
            out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "pi0" in out
    (row,) = read_episodes(tmp_path / "run").itertuples()
    assert (row.policy, row.error) == ("pi0", "")
