"""A policy server: every connection is one episode at a time, and their forwards are batched."""

import hmac
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection
from websockets.sync.server import serve as listen

from mrvlm_sim.agents.baselines import ScriptedExpert
from mrvlm_sim.agents.policy import CPU, EpisodeStart, Observations, Policy, close, requirements_of
from mrvlm_sim.agents.registry import load_policy, policy_identity
from mrvlm_sim.agents.sb3 import SB3Policy
from mrvlm_sim.agents.trained import TrainedPolicy
from mrvlm_sim.agents.wire import LARGEST_MESSAGE, PROTOCOL, pack, unpack
from mrvlm_sim.errors import UserError

GATHERING = 0.003  # seconds that the first of a batch waits for others
ACTIVE = 1.0  # seconds since its last decision for which a client is waited for
LARGEST_BATCH = 32


class Batcher:
    """Answers the decisions of many episodes with one forward of the network."""

    def __init__(self, policy: TrainedPolicy) -> None:
        self.policy = policy
        self._lock = threading.Lock()
        self._asked: WeakKeyDictionary[object, float] = WeakKeyDictionary()  # when each client did last
        self._waiting: SimpleQueue[tuple[Observations, torch.Tensor, Future[np.ndarray]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def decide(self, client: object, observations: Observations, words: torch.Tensor) -> np.ndarray:
        """The chunks for one client's observations."""
        with self._lock:
            self._asked[client] = time.monotonic()
        answer: Future[np.ndarray] = Future()
        self._waiting.put((observations, words, answer))
        return answer.result()

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            deadline = time.monotonic() + GATHERING
            expected = min(LARGEST_BATCH, self._active())
            while len(batch) < expected and (left := deadline - time.monotonic()) > 0:
                try:
                    batch.append(self._waiting.get(timeout=left))
                except Empty:
                    break
            self._answer(batch)

    def _active(self) -> int:
        now = time.monotonic()
        with self._lock:
            return sum(now - asked < ACTIVE for asked in self._asked.values())

    def _answer(self, batch: Sequence[tuple[Observations, torch.Tensor, "Future[np.ndarray]"]]) -> None:
        observations, words, answers = zip(*batch, strict=True)
        try:
            keys = [key for key, value in observations[0].items() if isinstance(value, np.ndarray)]
            together = {key: np.concatenate([one[key] for one in observations]) for key in keys}
            chunks = self.policy.decide(together, torch.cat(words))
        except Exception as error:  # whatever it was, every client that waits must hear of it, and only its own
            if len(batch) == 1:
                answers[0].set_exception(error)
            else:
                for one in batch:
                    self._answer([one])
            return
        for answer, chunk in zip(answers, chunks, strict=True):
            answer.set_result(chunk[None])


class BatchedPolicy(TrainedPolicy):
    """A trained policy whose decisions go through a `Batcher` that others use, too."""

    def __init__(self, batcher: Batcher) -> None:
        shared = batcher.policy
        super().__init__(shared.card, shared.network, shared.device)
        self.batcher = batcher

    def decide(self, observations: Observations, words: torch.Tensor) -> np.ndarray:
        return self.batcher.decide(self, observations, words)


def policy_server(
    reference: str,
    host: str,
    port: int,
    token: str | None = None,
    trust_pickle: bool = False,
    device: str = CPU,
) -> Server:
    """A server that is bound and not yet serving: call `serve_forever`, and `shutdown` from elsewhere.

    Raises:
        UserError: the policy cannot be loaded, or cannot be remote.
        OSError: the address is taken, or not this machine's.
    """
    first = load_policy(reference, trust_pickle, device)
    if isinstance(first, ScriptedExpert):
        raise UserError("the expert looks at the simulation itself, which is not where a server is; serve another")
    make: Callable[[], Policy]
    if isinstance(first, TrainedPolicy):
        batcher = Batcher(first)
        make = lambda: BatchedPolicy(batcher)  # noqa: E731
    elif isinstance(first, SB3Policy):
        make = partial(SB3Policy, first.network, first.card, first.path)  # one network, memories of their own
    else:
        make = lambda: load_policy(reference, trust_pickle, device)  # noqa: E731
    greeting = pack(_metadata(reference, first))

    def check_token(connection: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get("Authorization", "")
        if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return None
        return Response(HTTPStatus.UNAUTHORIZED, "Unauthorized", Headers(), b"wrong or missing token\n")

    def handle(connection: ServerConnection) -> None:
        session = Session(make())
        try:
            connection.send(greeting)
            for message in connection:
                connection.send(pack(session.answer(message)))
        except ConnectionClosed:
            pass
        finally:
            close(session.policy)

    return listen(
        handle, host, port, process_request=check_token, max_size=LARGEST_MESSAGE, compression=None
    )  # fmt: skip


def _metadata(reference: str, policy: Policy) -> dict[str, Any]:
    needs = requirements_of(policy)
    return {
        "protocol": PROTOCOL,
        "policy": reference,
        "identity": policy_identity(reference, policy),
        "cameras": {name: pyramid.model_dump_json() for name, pyramid in needs.cameras.items()},
        "action_size": needs.action_size,
        "frame_interval": needs.frame_interval,
    }


class Session:
    """One connection's policy and the instruction of its episode."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.instruction = policy, ""

    def answer(self, message: bytes | str) -> dict[str, Any]:
        """The answer to one message; whatever is wrong with it becomes an error, and the connection lives on."""
        started = time.perf_counter()
        try:
            question = unpack(message)
            match question.get("type"):
                case "reset":
                    answer = self._reset(
                        str(question["instruction"]), int(question["seed"]), int(question["action_size"])
                    )
                case "act":
                    answer = self._act(question["observation"])
                case other:
                    raise ValueError(f"type must be 'reset' or 'act', not {other!r}")
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return answer | {"server_ms": 1000 * (time.perf_counter() - started)}

    def _reset(self, instruction: str, seed: int, action_size: int) -> dict[str, Any]:
        self.instruction = instruction
        self.policy.reset([EpisodeStart(instruction, np.random.default_rng(seed), action_size)])
        return {"ready": True}

    def _act(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        batch: dict[str, Any] = {key: np.asarray(value)[None] for key, value in observation.items()}
        return {"action": np.asarray(self.policy.act(batch | {"instruction": [self.instruction]}))[0]}
