"""A policy in another process or on another machine, behind a WebSocket: `--policy ws://HOST:PORT`."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements
from mrvlm_sim.agents.wire import LARGEST_MESSAGE, PROTOCOL, pack, unpack
from mrvlm_sim.errors import UserError
from mrvlm_sim.vision import Pyramid

TOKEN_VARIABLE = "MRVLM_SIM_TOKEN"
PATIENCE = 20.0  # seconds to wait for an answer


class RemotePolicy:
    """Talks to `mrvlm-sim serve`: one connection for every episode of a batch, so that the server can batch them.

    A server that vanishes, answers late or answers nonsense costs the episode; the next one connects anew.
    """

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        self.address, self.patience = address, patience
        self._open, self._connections = ExitStack(), list[ClientConnection]()
        try:
            self.metadata = self._connect()
            self.requirements = _requirements(self.metadata)
        except (OSError, ValueError, TimeoutError, LookupError, TypeError, AttributeError, WebSocketException) as error:
            self.close()
            raise UserError(f"no policy answers at {address} ({error}); start one: mrvlm-sim serve POLICY") from error

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        while len(self._connections) < len(episodes):
            self._connect()
        self._active = self._connections[: len(episodes)]
        starts = [{"instruction": e.instruction, "seed": int(e.rng.integers(2**32))} for e in episodes]
        self._ask([{"type": "reset", **start} for start in starts], "ready")

    def act(self, observations: Observations) -> np.ndarray:
        arrays = {key: value for key, value in observations.items() if isinstance(value, np.ndarray)}
        questions = [
            {"type": "act", "observation": {key: value[i] for key, value in arrays.items()}}
            for i in range(len(self._active))
        ]
        return np.stack([np.asarray(answer["action"]) for answer in self._ask(questions, "action")])

    def close(self) -> None:
        """Hang up."""
        self._connections = []
        self._open.close()

    def _ask(self, questions: list[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
        """One question on every active connection; all are sent before the first answer is waited for."""
        try:
            for connection, question in zip(self._active, questions, strict=True):
                connection.send(pack(question))
            answers = [unpack(connection.recv(timeout=self.patience)) for connection in self._active]
        except TimeoutError as error:
            self.close()
            raise TimeoutError(f"{self.address} did not answer within {self.patience:g} s") from error
        except ConnectionClosed as error:
            self.close()
            raise ConnectionError(f"{self.address} hung up ({error})") from error
        except ValueError:
            self.close()
            raise
        for answer in answers:
            if wanted not in answer:
                raise ValueError(f"{self.address} answered {answer.get('error', sorted(answer))!r}")
        return answers

    def _connect(self) -> dict[str, Any]:
        """One more connection; returns what the server says of its policy."""
        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else None
        connection = self._open.enter_context(
            connect(self.address, additional_headers=headers, max_size=LARGEST_MESSAGE, compression=None, proxy=None)
        )
        metadata = unpack(connection.recv(timeout=self.patience))
        if metadata.get("protocol") != PROTOCOL:
            self.close()
            raise ValueError(f"it speaks {metadata.get('protocol')!r}, not {PROTOCOL!r}")
        self._connections.append(connection)
        return metadata


def _requirements(metadata: dict[str, Any]) -> Requirements:
    cameras = {name: Pyramid.model_validate_json(text) for name, text in metadata["cameras"].items()}
    return Requirements(cameras, int(metadata["action_size"]), int(metadata["frame_interval"]))
