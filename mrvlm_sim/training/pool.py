"""Work that several processes share, any of which may die: a software renderer does, once in hours."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from mrvlm_sim.errors import UserError
from mrvlm_sim.gl import one_render_thread

Part = TypeVar("Part")
Result = TypeVar("Result")
TRIES = 3  # of a part at which processes die
DIED = f"processes that render died {TRIES} times at the same scenes; mrvlm-sim doctor says what renders here"


def in_order(work: Callable[[Part], Result], parts: Sequence[Part], workers: int) -> Iterator[Result]:
    """What `work` makes of every part, in their order; without workers, in this process.

    What was not given when a process died is begun again by new ones.

    Raises:
        UserError: processes die at the same part again and again.
    """
    if workers == 0:
        yield from map(work, parts)
        return
    given, died = 0, 0
    while given < len(parts):
        with ProcessPoolExecutor(workers, get_context("spawn"), one_render_thread) as pool:
            jobs = [pool.submit(work, part) for part in parts[given:]]
            try:
                while jobs:
                    result = jobs.pop(0).result()  # and forgotten, as they are large
                    given, died = given + 1, 0
                    yield result
            except BrokenProcessPool as error:
                died += 1
                if died == TRIES:
                    raise UserError(DIED) from error
