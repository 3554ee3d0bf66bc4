"""What can be done with finished runs: `merge`, `compare`, `replay`, `export`, `curves`."""

from pathlib import Path
from typing import Annotated

import typer

from mrvlm_sim.commands.options import Reference
from mrvlm_sim.console import console, print_notes, print_report, print_table
from mrvlm_sim.errors import UserError


def merge(
    output: Annotated[Path, typer.Argument(help="Folder of the merged run; may have episodes already.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of the parts, in the order of the shards.")],
    reference: Reference = "uniform-256",
) -> None:
    """Put the episodes of several runs of one plan together, as `eval --shard` leaves them."""
    from mrvlm_sim.evaluation.merge import merge_runs
    from mrvlm_sim.evaluation.report import write_report
    from mrvlm_sim.evaluation.store import planned_keys
    from mrvlm_sim.evaluation.tables import reference_among

    merge_runs(output, runs)
    reference = reference_among((key.policy for key in planned_keys(output)), reference)
    print_report(output, write_report(output, reference), reference, str(output), [])


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    reference: Annotated[str | None, typer.Option(help="Arm to compare with; default: the first run's first.")] = None,
) -> None:
    """Compare the arms of several runs on the episodes they share, and say which episodes flipped."""
    from mrvlm_sim.evaluation.compare import compare_runs, flipped
    from mrvlm_sim.evaluation.tables import pretty

    table, notes, chosen = compare_runs(runs, reference)
    if table.empty:
        console.print("no episode was finished")
        return
    print_table(pretty(table, chosen), f"against {chosen}")
    print_table(flipped(runs, chosen), "episodes that flipped")
    print_notes(notes)


def replay(
    episode: Annotated[str, typer.Argument(metavar="RUN#EPISODE", help="A run's folder and an episode's number.")],
    policy: Annotated[str | None, typer.Option(help="Whose episode; needed if the run has several.")] = None,
    condition: Annotated[str, typer.Option(help="Under which condition.")] = "clean",
    seed: Annotated[int | None, typer.Option(help="Of which suite seed; needed if the run has several.")] = None,
    video: Annotated[Path | None, typer.Option(help="Film it: an .mp4.")] = None,
    height: Annotated[int, typer.Option(min=64, help="Height of the film in pixels.")] = 360,
) -> None:
    """Run a recorded episode again from its state and actions, and say whether it ends as it did."""
    from mrvlm_sim.evaluation.replay import find_episode
    from mrvlm_sim.evaluation.replay import replay as run_again
    from mrvlm_sim.paths import make_parent

    folder, _, number = episode.rpartition("#")
    if not folder or not number.isdecimal():
        raise UserError(f"an episode is named RUN#EPISODE, for example results/runs/mine#3, not {episode!r}")
    if video is not None:
        if video.suffix != ".mp4":
            raise UserError(f"--video must end in .mp4, not {video.name!r}")
        make_parent(video)
    key = find_episode(Path(folder), int(number), policy, condition, seed)
    replayed = run_again(Path(folder), key, video, height)
    outcome = "success" if replayed.success else "failure"
    console.print(f"{key.policy}, {key.condition}, episode {key.episode}: {outcome} after {replayed.steps} steps")
    if video is not None:
        console.print(f"wrote {video}")
    for difference in replayed.differences:
        console.print(f"differs from the record: {difference}", style="bold red", soft_wrap=True)
    if replayed.differences:
        raise typer.Exit(1)
    console.print("the same as recorded, to the bit")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    output: Annotated[Path, typer.Option(help="A .parquet or .csv file.")],
) -> None:
    """Write the episodes of a run as one file, a row each."""
    from mrvlm_sim.evaluation.export import export_run

    console.print(f"wrote {export_run(run, output)} episodes to {output}", soft_wrap=True)


def curves(
    trainings: Annotated[list[Path], typer.Argument(help="Folders of trainings by reinforcement, as <run>-<seed>.")],
    output: Annotated[Path | None, typer.Option(help="Folder for curves.csv, .md and .png; default: none.")] = None,
) -> None:
    """Learning curves of trainings side by side; folders that differ in the seed they end in are one run."""
    from mrvlm_sim.evaluation.curves import curve_table, read_curves, write_curves

    found = read_curves(trainings)
    print_table(write_curves(output, found) if output else curve_table(found), "at the last evaluation")
    if output:
        console.print(f"results: {output}")
