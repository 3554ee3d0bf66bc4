"""The client's end of a WebSocket to a policy server."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from mrvlm_sim.agents.wire import LARGEST_MESSAGE, pack, unpack

NOBODY_THERE = (OSError, ValueError, WebSocketException)  # what making a `Connection` may end with


class Connection:
    """Asks and is answered; the server speaks first, and what it says is the `greeting`.

    Trouble is a TimeoutError, ConnectionError or ValueError. After it the connection is of no use: an answer that
    comes late would be taken for that to the next question.
    """

    def __init__(self, address: str, patience: float, authorization: str | None = None) -> None:
        self.address, self.patience = address, patience
        headers = {"Authorization": authorization} if authorization else None
        # no pings: a server that is busy with a forward may not answer them, and patience bounds the wait anyway
        opened = connect(
            address, additional_headers=headers, max_size=LARGEST_MESSAGE, compression=None, proxy=None,
            ping_interval=None,
        )  # fmt: skip
        with ExitStack() as stack:
            self._socket = stack.enter_context(opened)
            self.greeting = self.receive()
            self._open = stack.pop_all()

    def send(self, message: Mapping[str, Any]) -> None:
        try:
            self._socket.send(pack(message))
        except ConnectionClosed as error:
            raise ConnectionError(f"{self.address} hung up ({error})") from error

    def receive(self) -> dict[str, Any]:
        """The next message, if it comes within `patience` seconds."""
        try:
            return unpack(self._socket.recv(timeout=self.patience))
        except TimeoutError as error:
            raise TimeoutError(f"{self.address} did not answer within {self.patience:g} s") from error
        except ConnectionClosed as error:
            raise ConnectionError(f"{self.address} hung up ({error})") from error

    def close(self) -> None:
        """Hang up."""
        self._open.close()
