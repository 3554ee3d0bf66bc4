"""What the command line prints with: tables, progress bars, the report of a run."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from mrvlm_sim.evaluation.episode import EpisodeRecord
    from mrvlm_sim.evaluation.evaluate import Evaluation

console = Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False)  # names have [] and :


def print_report(folder: Path, table: "pd.DataFrame", reference: str, title: str, notes: Sequence[str]) -> None:
    from mrvlm_sim.evaluation.report import run_notes
    from mrvlm_sim.evaluation.tables import pretty_tables

    if table.empty:
        console.print("no episode was finished")
    else:
        for part in pretty_tables(table, reference):
            print_table(part, title)
    print_notes([*notes, *run_notes(folder)])
    console.print(f"results: {folder}")


def print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        console.print(note, style="yellow", soft_wrap=True)


def print_table(frame: "pd.DataFrame", title: str) -> None:
    """Columns of text, folded where the terminal is narrow, so that names that differ at their end still do."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in frame:
        table.add_column(str(column), justify="left" if column == frame.columns[0] else "right", overflow="fold")
    for row in frame.astype(str).itertuples(index=False):
        table.add_row(*row)
    console.print(table)


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; the function it gives takes how much is done in all."""
    with progress_bar() as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


def log_updates(advance: Callable[[int], None]) -> Callable[[int, dict[str, float]], None]:
    """What a trainer calls now and then: the bar goes on, the figures are printed."""

    def log(update: int, figures: dict[str, float]) -> None:
        advance(update)
        console.print(f"{update:6d}  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    return log


def run_with_progress(run: "Evaluation") -> bool:
    """Run the evaluation under a progress bar with running rates; whether it was interrupted."""
    done: dict[str, list[bool]] = {}
    with progress_bar() as progress:
        task = progress.add_task("episodes", total=len(run.jobs))

        def advance(record: "EpisodeRecord") -> None:
            done.setdefault(record.policy, []).append(record.success)
            rate = f"{record.policy} {sum(done[record.policy])}/{len(done[record.policy])}"
            progress.update(task, advance=1, description=rate, total=run.expected)

        try:
            run.run(advance)
        except KeyboardInterrupt:
            return True
    return False
