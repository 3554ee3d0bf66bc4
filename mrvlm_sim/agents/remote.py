"""A policy in another process or on another machine, behind a WebSocket: `--policy ws://HOST:PORT`."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrvlm_sim.agents.connection import NOBODY_THERE, Connection
from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements
from mrvlm_sim.agents.wire import PROTOCOL
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
        self._connections = list[Connection]()
        try:
            self.metadata = self._connect()
            self.requirements = _requirements(self.metadata)
        except (*NOBODY_THERE, LookupError, TypeError, AttributeError) as error:
            self.close()
            raise UserError(f"no policy answers at {address} ({error}); start one: mrvlm-sim serve POLICY") from error

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        while len(self._connections) < len(episodes):
            self._connect()
        self._active = self._connections[: len(episodes)]
        self._ask([_reset_message(episode) for episode in episodes], "ready")

    def act(self, observations: Observations) -> np.ndarray:
        arrays = {key: value for key, value in observations.items() if isinstance(value, np.ndarray)}
        questions = [
            {"type": "act", "observation": {key: value[i] for key, value in arrays.items()}}
            for i in range(len(self._active))
        ]
        return np.stack([np.asarray(answer["action"]) for answer in self._ask(questions, "action")])

    def close(self) -> None:
        """Hang up."""
        while self._connections:
            self._connections.pop().close()

    def _ask(self, questions: list[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
        """One question on every active connection; all are sent before the first answer is waited for."""
        try:
            for connection, question in zip(self._active, questions, strict=True):
                connection.send(question)
            answers = [connection.receive() for connection in self._active]
        except (OSError, ValueError):
            self.close()
            raise
        for answer in answers:
            if wanted not in answer:
                raise ValueError(f"{self.address} answered {answer.get('error', sorted(answer))!r}")
        return answers

    def _connect(self) -> dict[str, Any]:
        """One more connection; returns what the server says of its policy."""
        token = os.environ.get(TOKEN_VARIABLE)
        connection = Connection(self.address, self.patience, f"Bearer {token}" if token else None)
        spoken = connection.greeting.get("protocol")
        if spoken != PROTOCOL:
            connection.close()
            raise ValueError(f"it speaks {spoken!r}, not {PROTOCOL!r}")
        self._connections.append(connection)
        return connection.greeting


def _requirements(metadata: dict[str, Any]) -> Requirements:
    cameras = {name: Pyramid.model_validate_json(text) for name, text in metadata["cameras"].items()}
    size = metadata["action_size"]
    return Requirements(cameras, None if size is None else int(size), int(metadata["frame_interval"]))


def _reset_message(episode: EpisodeStart) -> dict[str, Any]:
    seed = int(episode.rng.integers(2**32))
    return {"type": "reset", "instruction": episode.instruction, "seed": seed, "action_size": episode.action_size}
