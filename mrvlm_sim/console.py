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

console = Console(width=None if sys.stdout.isatty() else 200)


def print_report(folder: Path, table: "pd.DataFrame", reference: str, title: str, notes: Sequence[str]) -> None:
    from mrvlm_sim.evaluation.report import run_notes
    from mrvlm_sim.evaluation.tables import pretty

    if table.empty:
        console.print("no episode was finished")
    else:
        print_table(pretty(table, reference), title)
    for note in [*notes, *run_notes(folder)]:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    console.print(f"results: {folder}")


def print_table(frame: "pd.DataFrame", title: str) -> None:
    """Columns of text, wrapped where the terminal is narrow."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in frame:
        table.add_column(str(column), justify="left" if column == frame.columns[0] else "right")
    for row in frame.astype(str).itertuples(index=False):
        table.add_row(*row)
    console.print(table)


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; the function it gives takes how much is done in all."""
    with progress_bar() as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)
