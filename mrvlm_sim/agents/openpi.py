"""Policies behind openpi's WebSocket protocol: `--policy openpi://HOST:PORT`, or a card that maps keys and actions.

The protocol (`WebsocketPolicyServer` of github.com/Physical-Intelligence/openpi): on connecting, the server sends a map
of metadata; every question is one observation, a map of arrays and texts, and every answer a map in which `actions` is
a chunk (steps, dimensions). An answer in text is the traceback of what went wrong, after which the server hangs up.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
from gymnasium import spaces
from pydantic import Field, model_validator

from mrvlm_sim.agents.connection import NOBODY_THERE, Connection
from mrvlm_sim.agents.policy import EpisodeStart, Observations, Requirements
from mrvlm_sim.cards import Card
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.sim.suite_env import SuiteEnv
from mrvlm_sim.vision import Pyramid, unpatchify
from mrvlm_sim.wrappers import MultiResolutionTokens

SCHEME = "openpi://"
KEY_VARIABLE = "OPENPI_API_KEY"
CAMERA, INSTRUCTION = "camera:", "instruction"
DEFAULT_OBSERVATION = {
    "observation/image": "camera:scene",
    "observation/wrist_image": "camera:wrist",
    "observation/state": "proprio",
    "prompt": INSTRUCTION,
}
PositiveInt = Annotated[int, Field(ge=1)]
Column = Annotated[int, Field(ge=0)]


class OpenPiCard(Card):
    """What to ask an openpi server and how to read its answers; the defaults are those of the protocol's examples."""

    address: Annotated[str, Field(pattern=r"^(openpi://.+:\d+|wss?://.+)$")]
    execute: PositiveInt = 5  # actions of each chunk that are carried out before the next question
    image_size: PositiveInt = 224  # pixels
    patience: Annotated[float, Field(gt=0)] = 120.0  # seconds; the first answer may wait for a compiler
    action_key: str = "actions"
    action_columns: Annotated[tuple[Column, ...], Field(min_length=1)] | None = (
        None  # for each action here; all of them
    )
    action_scale: tuple[float, ...] | None = None  # of each action here, before the offset
    action_offset: tuple[float, ...] | None = None
    observation: Annotated[dict[str, str], Field(min_length=1)] = DEFAULT_OBSERVATION  # the server's key -> ours

    @model_validator(mode="after")
    def _one_for_each_action(self) -> Self:
        for key in ("action_scale", "action_offset"):
            given = getattr(self, key)
            if given is not None and len(given) != len(self.action_columns or ()):
                raise ValueError(f"{key} has one number for each of action_columns, not {len(given)}")
        return self

    @property
    def url(self) -> str:
        return self.address.replace(SCHEME, "ws://", 1)

    @property
    def cameras(self) -> dict[str, Pyramid]:
        """Each camera's plain frame: a pyramid of one level with one token."""
        frame = Pyramid(frame_size=self.image_size, patch=self.image_size, grids=(1,))
        sources = self.observation.values()
        return {source.removeprefix(CAMERA): frame for source in sources if source.startswith(CAMERA)}


class OpenPiPolicy:
    """Asks for a chunk, carries out its first `execute` actions, and asks again; values beyond [-1, 1] are clipped.

    A server that vanishes, answers late or answers nonsense costs the episode; the next one connects anew.
    """

    def __init__(self, card: OpenPiCard) -> None:
        self.card = card
        needs = Requirements(card.cameras, frame_interval=card.execute)
        self.requirements = replace(needs, action_size=len(card.action_columns)) if card.action_columns else needs
        try:
            self._connection: Connection | None = self._connect()
        except NOBODY_THERE as error:
            raise UserError(f"no openpi server answers at {card.address} ({error}); start it there") from error
        self.metadata = self._connection.greeting

    def check_environment(self, env: SuiteEnv) -> None:
        """Ask once about an empty observation of this environment, and see whether the answer is of any use here.

        Raises:
            UserError: the environment does not have what the card maps, or the server cannot answer.
        """
        shown: spaces.Dict = MultiResolutionTokens(env, self.card.cameras).observation_space  # type: ignore[assignment]
        for source in self.card.observation.values():
            if source not in shown.spaces and not source.startswith(CAMERA):
                raise unknown_name(f"observation, sent to {self.card.address},", source, shown)
        empty: dict[str, Any] = {key: np.zeros((1, *space.shape), space.dtype) for key, space in shown.items()}  # type: ignore[misc]
        try:
            chunk = self._ask(empty | {INSTRUCTION: [""]}, 0)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.card.address} cannot act here: {error}") from error
        if chunk.shape[1:] != env.action_space.shape:
            raise UserError(
                f"{self.card.address} gives {chunk.shape[1]} numbers per action, the environment takes "
                f"{env.action_space.shape}; choose them by action_columns in a card"
            )

    def reset(self, episodes: Sequence[EpisodeStart]) -> None:
        self._step = 0
        if self._connection is None:
            self._connection = self._connect()

    def act(self, observations: Observations) -> np.ndarray:
        ahead = self._step % self.card.execute
        if ahead == 0:
            chunks = [self._ask(observations, index) for index in range(len(observations[INSTRUCTION]))]
            self._chunks = np.stack(chunks)
        self._step += 1
        return self._chunks[:, ahead]

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Connection:
        key = os.environ.get(KEY_VARIABLE)
        return Connection(self.card.url, self.card.patience, f"Api-Key {key}" if key else None)

    def _ask(self, observations: Observations, index: int) -> np.ndarray:
        """The actions (execute, actions) for one episode of a batch."""
        question = {key: self._shown(source, observations, index) for key, source in self.card.observation.items()}
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.send(question)
            return self._understood(self._connection.receive())
        except (OSError, ValueError):
            self.close()
            raise

    def _shown(self, source: str, observations: Observations, index: int) -> Any:
        if not source.startswith(CAMERA):
            return observations[source][index]
        camera = source.removeprefix(CAMERA)
        (picture,) = unpatchify(observations[f"{camera}/tokens"][index], self.requirements.cameras[camera])
        return picture

    def _understood(self, answer: dict[str, Any]) -> np.ndarray:
        card = self.card
        if card.action_key not in answer:
            told = answer.get("error", ", ".join(map(str, answer)) or "nothing")
            raise ValueError(f"{card.address} answered without {card.action_key!r} (action_key of the card): {told}")
        chunk = np.asarray(answer[card.action_key])
        if chunk.ndim != 2 or len(chunk) < card.execute or not np.issubdtype(chunk.dtype, np.number):
            raise ValueError(
                f"{card.address} must answer with numbers (steps, dimensions) for at least {card.execute} steps "
                f"(execute of the card), it answered with {chunk.dtype} {chunk.shape}"
            )
        if card.action_columns is not None:
            if max(card.action_columns) >= chunk.shape[1]:
                raise ValueError(f"{card.address} gives {chunk.shape[1]} columns, not all of {card.action_columns}")
            chunk = chunk[:, card.action_columns]
        chunk = chunk[: card.execute].astype(np.float64)
        return np.clip(chunk * (card.action_scale or 1.0) + (card.action_offset or 0.0), -1, 1)


def card_of_address(address: str) -> OpenPiCard:
    """The card of a server that is named by its address alone.

    Raises:
        UserError: it is no such address.
    """
    try:
        return OpenPiCard(address=address)
    except ValueError as error:
        raise UserError(f"{address!r} must be openpi://HOST:PORT") from error
