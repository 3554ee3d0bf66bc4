"""Work shared by processes that die."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from mrvlm_sim.errors import UserError
from mrvlm_sim.training.pool import TRIES, in_order


def squared(folder: Path, dies: int, part: int) -> int:
    """The square; for part 2, the process is killed before it, so many times."""
    if part == 2 and len([*folder.iterdir()]) < dies:
        (folder / f"{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return part**2


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers: int, tmp_path: Path) -> None:
    assert [*in_order(partial(squared, tmp_path, 0), range(5), workers)] == [0, 1, 4, 9, 16]


@pytest.mark.slow
def test_what_died_is_done_again(tmp_path: Path) -> None:
    assert [*in_order(partial(squared, tmp_path, TRIES - 1), range(5), 1)] == [0, 1, 4, 9, 16]
    assert len([*tmp_path.iterdir()]) == TRIES - 1


@pytest.mark.slow
def test_what_always_dies_is_an_error_and_the_rest_is_given(tmp_path: Path) -> None:
    results = in_order(partial(squared, tmp_path, 100), range(5), 1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match=r"died 3 times at the same scenes; mrvlm-sim doctor says"):
        next(results)
    assert len([*tmp_path.iterdir()]) == TRIES


def test_an_error_of_the_work_is_not_a_death() -> None:
    with pytest.raises(ZeroDivisionError):
        [*in_order(partial(divmod, 1), [1, 0], 1)]
