"""Measuring what arms can read: `acuity`."""

from pathlib import Path
from typing import Annotated

import typer

from mrvlm_sim.console import bar, console, log_updates, print_table
from mrvlm_sim.errors import unknown_name


def acuity(
    arm: Annotated[list[str], typer.Option(help="Arm with weights, or a policy folder; repeatable.")],
    output: Annotated[Path | None, typer.Option(help="Folder; default: results/runs/acuity.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials of every size at every eccentricity.")] = 100,
    scenes: Annotated[
        int, typer.Option(min=1000, help="Scenes that readers are taught with; 1000 take 0.25 GB.")
    ] = 16000,
    updates: Annotated[int, typer.Option(min=1, help="Updates of every reader.")] = 4000,
    seed: Annotated[int, typer.Option(min=0, help="Of the trials.")] = 0,
    reference: Annotated[str | None, typer.Option(help="Arm the others are compared with; default: the first.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
) -> None:
    """Which marks arms can read, by size and eccentricity: teach every arm to read, then test it.

    The arm's encoder is trained on, with a small head that is told where the plates are, to name the marks on the
    plates of `read_mark`: the same scenes, updates and recipe for every arm. Trials are forced choices among four, from
    the first look alone. The same command goes on where it stopped; trials, tables and a picture go to the folder.
    """
    import pandas as pd

    from mrvlm_sim.evaluation.acuity import Examination, Threshold, surface, thresholds
    from mrvlm_sim.evaluation.acuity_report import load_readable, write_acuity, write_right
    from mrvlm_sim.evaluation.tables import reference_among
    from mrvlm_sim.paths import runs_folder
    from mrvlm_sim.training.reading import Lesson, Reading

    folder, policies, examination = (
        output or runs_folder() / "acuity",
        load_readable(arm),
        Examination(trials, seed, workers),
    )
    compared_with = reference_among(policies, reference or next(iter(policies)))
    if compared_with not in policies:
        raise unknown_name("arm", compared_with, policies)
    done: dict[str, pd.DataFrame] = {}
    found: dict[str, dict[float, Threshold]] = {}
    for name, policy in policies.items():
        reading = Reading(policy, Lesson(scenes, updates), folder / "readers" / name, workers)
        trial_file = folder / "trials" / f"{name.replace('/', '-')}.csv"
        if reading.update < updates:
            trial_file.unlink(missing_ok=True)
            console.print(f"{name}: rendering the scenes it is taught with")
        with bar(f"{name} learns to read", updates) as advance:
            reading.run(log_updates(advance))
        done[name] = examination.of(name, reading.reader, policy.card.cameras, trial_file)
        found |= thresholds(surface(done[name]))
        trials_done = pd.concat(done.values(), ignore_index=True)
        table = write_acuity(folder, trials_done, found, {arm: policies[arm] for arm in done})
    print_table(write_right(folder, trials_done, compared_with), "the same trials, all sizes and places")
    print_table(table, f"smallest mark read of four, {trials} trials of every size")
    console.print(f"results: {folder}")
