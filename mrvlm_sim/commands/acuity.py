"""Measuring what arms can read: `acuity`."""

from pathlib import Path
from typing import Annotated

import typer

from mrvlm_sim.console import bar, console, print_table


def acuity(
    arm: Annotated[list[str], typer.Option(help="Arm with weights, or a policy folder; repeatable.")],
    output: Annotated[Path, typer.Option(help="Folder for trials, tables and picture.")] = Path("results/runs/acuity"),
    trials: Annotated[int, typer.Option(min=1, help="Trials of every size at every eccentricity.")] = 100,
    scenes: Annotated[int, typer.Option(min=1000, help="Scenes that readers are taught with.")] = 8000,
    updates: Annotated[int, typer.Option(min=1, help="Updates of every reader.")] = 6000,
    seed: Annotated[int, typer.Option(min=0, help="Of the trials.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
) -> None:
    """Which marks arms can read, by size and eccentricity: teach every arm to read, then test it.

    The arm's encoder is trained on, with a small head, to name the marks on the plates of `read_mark`: the same
    scenes, updates and recipe for every arm. Trials are forced choices among four, from the first look alone.
    """
    import pandas as pd

    from mrvlm_sim.evaluation.acuity import examine
    from mrvlm_sim.evaluation.acuity_report import load_readable, write_acuity
    from mrvlm_sim.training.reading import Lesson, Reading

    policies, done = load_readable(arm), []
    for name, policy in policies.items():
        console.print(f"{name}: rendering what it is taught with")
        reading = Reading(policy, Lesson(scenes, updates), output / "readers" / name, workers)
        with bar("updates", updates) as advance:

            def log(update: int, figures: dict[str, float]) -> None:
                advance(update)
                console.print(f"{update:6d}  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

            reading.run(log)
        done.append(examine(name, reading.reader, policy.card.cameras, trials, seed, workers))
        table = write_acuity(
            output, pd.concat(done, ignore_index=True), {n: policies[n] for n in list(policies)[: len(done)]}
        )
    print_table(table, f"smallest mark read of four, {trials} trials of every size")
    console.print(f"results: {output}")
