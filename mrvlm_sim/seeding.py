"""Independent random streams, each named by what it is for.

Every stream is derived from (suite seed, environment, episode index, stream name), so that no stream
depends on what another consumed, on the number of workers or on the order of episodes.
"""

from zlib import crc32

import numpy as np


def seed_sequence(suite_seed: int, environment: str, episode: int, stream: str) -> np.random.SeedSequence:
    """The root of one stream (numpy's SeedSequence mixes the four parts).

    What is set in brackets after the environment's name does not count: its episodes are the plain one's.
    """
    name = environment.partition("[")[0]
    return np.random.SeedSequence([suite_seed, crc32(name.encode()), episode, crc32(stream.encode())])


def generator(suite_seed: int, environment: str, episode: int, stream: str) -> np.random.Generator:
    """A generator at the start of one stream."""
    return np.random.default_rng(seed_sequence(suite_seed, environment, episode, stream))


def integer_seed(suite_seed: int, environment: str, episode: int, stream: str) -> int:
    """A 32-bit seed for interfaces that take an integer, as `gymnasium.Env.reset` does."""
    return int(seed_sequence(suite_seed, environment, episode, stream).generate_state(1)[0])
