"""Messages between a policy server and its clients: MessagePack with arrays, never pickle.

Arrays are maps with the keys b"__ndarray__", b"data", b"dtype" and b"shape", as openpi writes them; its numbers with a
dtype (b"__npgeneric__", b"data") are read as plain numbers.
"""

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

PROTOCOL = "mrvlm_sim/1"
LARGEST_MESSAGE = 64 * 2**20  # bytes
LONGEST_QUOTE = 300  # characters
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"


def pack(message: Mapping[str, Any]) -> bytes:
    """A message of numbers, texts, lists, maps and arrays as bytes."""
    return msgpack.packb(message, default=_encode)


def unpack(data: bytes | str) -> dict[str, Any]:
    """What `pack` was given.

    Raises:
        ValueError: it is no message: text, damaged, not a map, or with an array of another kind than numbers.
    """
    if isinstance(data, str):
        raise ValueError(f"a message must be binary, this one is text: {data.strip()[-LONGEST_QUOTE:]}")
    try:
        message = msgpack.unpackb(data, object_hook=_decode)
    except (msgpack.UnpackException, ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"not a MessagePack message ({type(error).__name__}: {error})") from error
    if not isinstance(message, dict):
        raise ValueError(f"a message must be a map, not {type(message).__name__}")
    return message


def _encode(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _decode(value: dict) -> object:
    if SCALAR in value:
        return value[b"data"]
    if ARRAY not in value:
        return value
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"arrays must be of numbers, not {dtype}")
    return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"]).copy()
