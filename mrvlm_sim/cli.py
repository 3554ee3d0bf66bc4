"""The command line; the commands themselves are in `mrvlm_sim.commands`."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from mrvlm_sim import __version__
from mrvlm_sim.commands import acuity, attacking, evaluating, looking, runs, training
from mrvlm_sim.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Judge robot policies that see through jittered multi-resolution vision, side by side with uniform ViTs.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train an arm, or an adversary of one.")

COMMANDS: tuple[Callable[..., None], ...] = (
    runs.merge, runs.compare, runs.replay, runs.export, runs.curves, attacking.attack, attacking.audit,
    attacking.rings, attacking.verdicts, evaluating.serve, training.demos, acuity.acuity,
    looking.cost, looking.coverage, looking.view, looking.doctor, looking.bench,
)  # fmt: skip


def show_version(asked: bool) -> None:
    """Print the version and end, if that was asked for."""
    if asked:
        print(f"mrvlm-sim {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


app.command("eval")(evaluating.evaluate)
app.add_typer(train_app, name="train")
train_app.command("bc")(training.train_bc)
train_app.command("rl")(training.train_rl)
train_app.command("adversary")(training.train_adversary)
for command in COMMANDS:
    app.command()(command)
app.command("list")(looking.list_all)


def main() -> None:
    """Entry point: errors of the user are one message and exit code 2, Ctrl-C is 130."""
    try:
        app()
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print("error:", style="bold red", end=" ")
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
