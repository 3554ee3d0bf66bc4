"""Runs of one plan that were carried out apart, put together."""

from collections.abc import Sequence
from pathlib import Path

from mrvlm_sim.evaluation.store import RunStore, check_run


def merge_runs(output: Path, runs: Sequence[Path]) -> None:
    """Add planned and finished episodes of `runs` to the run in `output`, which is made if it is not there.

    An episode that several runs have is taken once, if they agree on it.

    Raises:
        UserError: a folder holds no run, or two runs differ in a card, in weights, or in an episode's outcome.
    """
    for run in runs:
        check_run(run)  # refuses what is no run before anything is written
    with RunStore(output) as store:
        store.absorb(runs)
