"""Policies behind a WebSocket act as they do in this process, and trouble with them costs the episode only."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as listen

from mrvlm_sim.agents.registry import load_policy, policy_name
from mrvlm_sim.agents.remote import RemotePolicy
from mrvlm_sim.agents.serve import BatchedPolicy, Batcher, policy_server
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.agents.wire import PROTOCOL, pack, unpack
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.episode import EpisodeRecord, run_episode
from mrvlm_sim.models import encode_words
from mrvlm_sim.sim.env import ManipulationEnv

numbers = st.one_of(st_np.floating_dtypes(), st_np.integer_dtypes(), st_np.boolean_dtypes())


@contextmanager
def serving(reference: str, token: str | None = None) -> Iterator[str]:
    with policy_server(reference, "127.0.0.1", 0, token) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def pretending(answer: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A server that greets as it should, and then does something else."""
    greeting = {"protocol": PROTOCOL, "policy": "x", "cameras": {}, "action_size": 5, "frame_interval": 1}

    def handle(connection: ServerConnection) -> None:
        connection.send(pack(greeting))
        for message in connection:
            if unpack(message)["type"] == "reset":
                connection.send(pack({"ready": True}))
            else:
                answer(connection)

    with listen(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


HOLDS = """
import numpy as np

class Holds:
    def reset(self, episodes): ...
    def act(self, observations):
        return np.zeros((1, 5))
    def close(self):
        with open("closed", "a") as file:
            file.write("x")
"""


def run(env: ManipulationEnv, policy: Any, episode: int = 0) -> EpisodeRecord:
    return replace(run_episode(env, "pick_place", policy, "mine", Condition(), 0, episode), latency_ms=[])


class TestWire:
    @given(array=st_np.arrays(numbers, st_np.array_shapes(min_dims=0, min_side=0)), text=st.text())
    def test_what_is_sent_is_received(self, array: np.ndarray, text: str) -> None:
        received = unpack(pack({"a": array, "nested": {"text": text, "list": [1, 2.5, None, True]}}))
        assert received["nested"] == {"text": text, "list": [1, 2.5, None, True]}
        assert received["a"].dtype == array.dtype
        np.testing.assert_array_equal(received["a"], array)

    @given(data=st.one_of(st.binary(max_size=200), st.text(max_size=50)))
    def test_noise_is_a_value_error_or_a_map(self, data: bytes | str) -> None:
        with suppress(ValueError):
            assert isinstance(unpack(data), dict)

    @pytest.mark.parametrize("dtype", ["O", "V8", "U4", "M8[s]"])
    def test_only_numbers_are_arrays(self, dtype: str) -> None:
        forged = {"a": {b"__ndarray__": True, b"data": bytes(16), b"dtype": dtype, b"shape": [1]}}
        with pytest.raises(ValueError, match="arrays must be of numbers"):
            unpack(pack(forged))

    def test_other_things_cannot_be_sent(self) -> None:
        with pytest.raises(TypeError, match="Path cannot be sent"):
            pack({"a": Path("x")})


class TestServer:
    def test_a_remote_policy_acts_like_the_same_here(
        self, tiny_folder: Path, tiny: TrainedPolicy, brief_env: ManipulationEnv
    ) -> None:
        with serving(str(tiny_folder)) as address:
            remote = load_policy(address)
            assert remote.requirements == tiny.requirements  # type: ignore[attr-defined]
            for episode in (0, 1):
                assert run(brief_env, remote, episode) == run(brief_env, tiny, episode)

    def test_its_randomness_is_the_episodes_own(self, brief_env: ManipulationEnv) -> None:
        with serving("random") as address:
            remote = load_policy(address)
            first = [run(brief_env, remote, episode) for episode in (0, 1)]
            assert [run(brief_env, remote, episode) for episode in (1, 0)] == first[::-1]
            assert first[0].end_hash != first[1].end_hash

    def test_decisions_of_many_are_one_forward(self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        decide = tiny.decide
        monkeypatch.setattr(tiny, "decide", lambda o, words: sizes.append(len(words)) or decide(o, words))
        monkeypatch.setattr("mrvlm_sim.agents.serve.GATHERING", 0.5)
        batcher, rng, pyramid = Batcher(tiny), np.random.default_rng(0), tiny.card.cameras["wrist"]
        looks = [
            {
                "wrist/tokens": rng.integers(0, 256, (1, pyramid.tokens, 3 * pyramid.patch**2), dtype=np.uint8),
                "wrist/boxes": pyramid.token_boxes(pyramid.centred())[None],
                "proprio": rng.normal(size=(1, 7)).astype(np.float32),
            }
            for _ in range(5)
        ]
        words = [encode_words([f"put the {colour} cube away"]) for colour in "abcde"]
        clients = [BatchedPolicy(batcher) for _ in range(5)]
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(BatchedPolicy.decide, clients, looks, words))  # now it knows of all of them
            sizes.clear()
            answers = list(pool.map(BatchedPolicy.decide, clients, looks, words))
        assert sizes == [5]
        for answer, look, text in zip(answers, looks, words, strict=True):
            assert np.abs(answer - decide(look, text)).max() < 1e-5

    def test_one_alone_is_not_kept_waiting(self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mrvlm_sim.agents.serve.GATHERING", 1000.0)
        client, pyramid = BatchedPolicy(Batcher(tiny)), tiny.card.cameras["wrist"]
        look = {
            "wrist/tokens": np.zeros((1, pyramid.tokens, 3 * pyramid.patch**2), np.uint8),
            "wrist/boxes": pyramid.token_boxes(pyramid.centred())[None],
            "proprio": np.zeros((1, 7), np.float32),
        }
        assert client.decide(look, encode_words(["go"])).shape == (1, tiny.card.network.chunk, 5)

    def test_a_look_of_the_wrong_shape_costs_its_own_client_only(
        self, tiny: TrainedPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mrvlm_sim.agents.serve.GATHERING", 0.5)
        batcher, pyramid = Batcher(tiny), tiny.card.cameras["wrist"]
        look = {
            "wrist/tokens": np.zeros((1, pyramid.tokens, 3 * pyramid.patch**2), np.uint8),
            "wrist/boxes": pyramid.token_boxes(pyramid.centred())[None],
            "proprio": np.zeros((1, 7), np.float32),
        }
        looks = [look, look | {"proprio": np.zeros((1, 3), np.float32)}, look]
        clients = [BatchedPolicy(batcher) for _ in looks]
        with ThreadPoolExecutor(3) as pool:
            for _ in range(2):  # the second time, all are waited for
                decisions = zip(clients, looks, strict=True)
                answers = [pool.submit(client.decide, one, encode_words(["go"])) for client, one in decisions]
        assert [answer.exception() is None for answer in answers] == [True, False, True]

    def test_when_a_client_leaves_its_policy_lets_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "holds.py").write_text(HOLDS)
        monkeypatch.chdir(tmp_path)
        with serving("holds.py:Holds") as address:
            RemotePolicy(address).close()
            RemotePolicy(address).close()
        assert (tmp_path / "closed").read_text() == "xx"

    def test_the_expert_is_not_served(self) -> None:
        with pytest.raises(UserError, match="the expert looks at the simulation itself"):
            policy_server("expert", "127.0.0.1", 0)

    @pytest.mark.parametrize("message", [b"", b"\xc1", "text", pack({"type": "dance"}), pack({"type": "reset"})])
    def test_a_malformed_message_is_answered_with_an_error(self, message: bytes | str) -> None:
        with serving("random") as address, connect(address) as connection:
            unpack(connection.recv())
            connection.send(message)
            assert list(unpack(connection.recv(timeout=5))) == ["error"]
            connection.send(pack({"type": "reset", "instruction": "go", "seed": 0, "action_size": 5}))
            assert unpack(connection.recv(timeout=5))["ready"] is True
            connection.send(pack({"type": "act", "observation": {}}))
            assert unpack(connection.recv(timeout=5))["server_ms"] >= 0

    def test_a_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving("random", token="open sesame") as address:
            for wrong in (None, "open barley"):
                monkeypatch.delenv("MRVLM_SIM_TOKEN", raising=False)
                if wrong:
                    monkeypatch.setenv("MRVLM_SIM_TOKEN", wrong)
                with pytest.raises(UserError, match="HTTP 401"):
                    RemotePolicy(address)
            monkeypatch.setenv("MRVLM_SIM_TOKEN", "open sesame")
            assert RemotePolicy(address).metadata["policy"] == "random"


class TestTrouble:
    def test_nobody_there(self) -> None:
        with pytest.raises(UserError, match=r"no policy answers at ws://127\.0\.0\.1:9 .* mrvlm-sim serve POLICY"):
            load_policy("ws://127.0.0.1:9")

    def test_a_server_of_another_kind(self) -> None:
        with listen(lambda connection: connection.send(pack({"hello": 1})), "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pytest.raises(UserError, match=f"it speaks None, not '{PROTOCOL}'"):
                load_policy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
            server.shutdown()

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (lambda connection: connection.close(), r"ConnectionError: ws://.* hung up"),
            (lambda connection: None, r"TimeoutError: ws://.* did not answer within 0\.5 s"),
            (lambda connection: connection.send(b"\xc1garbage"), "ValueError: not a MessagePack message"),
            (lambda connection: connection.send("yes"), "ValueError: a message must be binary"),
            (lambda connection: connection.send(pack({"error": "ill"})), "ValueError: ws://.* answered 'ill'"),
            (lambda connection: connection.send(pack({"action": np.zeros(3)})), r"ValueError: act must return shape"),
            (lambda connection: connection.send(pack({"action": np.full(5, np.nan)})), "must return finite numbers"),
        ],
    )  # fmt: skip
    def test_it_costs_the_episode(
        self, answer: Callable[[ServerConnection], None], error: str, brief_env: ManipulationEnv
    ) -> None:
        with pretending(answer) as address:
            policy = RemotePolicy(address, patience=0.5)
            for episode in (0, 1):
                record = run(brief_env, policy, episode)
                assert re.search(error, record.error), record.error
                assert not record.success
            policy.close()

    def test_after_trouble_it_connects_anew(self, brief_env: ManipulationEnv) -> None:
        calls: list[int] = []

        def once(connection: ServerConnection) -> None:
            calls.append(1)
            if len(calls) == 3:
                connection.close()
            else:
                connection.send(pack({"action": np.zeros(5)}))

        with pretending(once) as address:
            policy = RemotePolicy(address)
            assert "hung up" in run(brief_env, policy, 0).error
            assert run(brief_env, policy, 0).error == ""
            policy.close()


def test_its_name_is_its_address() -> None:
    assert policy_name("ws://somewhere:8765") == "somewhere:8765"
