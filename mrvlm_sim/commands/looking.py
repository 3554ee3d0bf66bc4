"""What there is, what it sees, what it costs: `list`, `view`, `cost`, `bench`, `doctor`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from mrvlm_sim.commands.options import Arm, Device, Env, Eyes, Settings, torch_device
from mrvlm_sim.console import console, print_table
from mrvlm_sim.errors import UserError, unknown_name


def cost() -> None:
    """Tokens, acuity, parameters and GFLOPs of every arm, without simulating."""
    from mrvlm_sim.evaluation.costs import cost_tables

    for title, table in cost_tables().items():
        print_table(table, title)


def coverage(
    arm: Arm,
    camera: Annotated[str, typer.Option(help="Which of the arm's cameras.")] = "wrist",
    looks: Annotated[int, typer.Option(min=1, help="For how many looks.")] = 50,
    tremor: Annotated[float | None, typer.Option(help="Instead of the arm's own, in half-parents.")] = None,
    drift: Annotated[float | None, typer.Option(help="Instead of the arm's own.")] = None,
    saccade: Annotated[float | None, typer.Option(help="Instead of the arm's own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the jitter.")] = 0,
    output: Annotated[Path | None, typer.Option(help="A .png to draw as well.")] = None,
) -> None:
    """How much of the frame a pyramid's jitter shows sharply within some looks, and how old that gets."""
    from mrvlm_sim.agents.registry import arm_card
    from mrvlm_sim.evaluation.coverage import age_table, cover, coverage_table, draw_coverage, other_jitter

    if output is not None and output.suffix != ".png":
        raise UserError(f"--output must end in .png, not {output.name!r}")
    card, _ = arm_card(arm)
    if camera not in card.cameras:
        raise unknown_name(f"camera of {arm}", camera, card.cameras)
    pyramid = other_jitter(card.cameras[camera], tremor=tremor, drift=drift, saccade=saccade)
    found = cover(pyramid, looks, seed)
    print_table(coverage_table(found), f"{arm}, {camera}: share of the frame seen at each resolution or sharper, %")
    print_table(age_table(found), f"age of the newest sample of level {pyramid.levels - 1} after {looks} looks")
    if output is not None:
        draw_coverage(found, output)
        console.print(f"wrote {output}")


def view(
    env: Env,
    arm: Arm,
    output: Annotated[Path, typer.Option(help="A .png, or a .mp4 of a whole expert episode.")] = Path("view.png"),
    seed: Annotated[int, typer.Option(min=0, help="Which episode.")] = 0,
    settings: Settings = None,
    eyes: Eyes = None,
) -> None:
    """Show what an arm sees: the frame with the boxes, and every view with its token grid."""
    from mrvlm_sim.agents.registry import arm_card
    from mrvlm_sim.evaluation.view import save_view
    from mrvlm_sim.paths import make_parent
    from mrvlm_sim.tasks import environment_card, with_settings

    if output.suffix not in (".png", ".mp4"):
        raise UserError(f"--output must end in .png or .mp4, not {output.name!r}")
    env = with_settings(env, settings or [])
    environment_card(env)
    card = arm_card(arm)[0].with_eyes(eyes)
    make_parent(output)
    save_view(env, card, seed, output)
    console.print(f"wrote {output}")


def list_all() -> None:
    """List environments, arms, policies, attacks, shifts and eyes."""
    from mrvlm_sim.evaluation.catalogue import catalogue

    for title, frame in catalogue().items():
        if len(frame):
            print_table(frame, title)


def bench(
    quick: Annotated[bool, typer.Option(help="Fewer repetitions.")] = False,
    device: Annotated[
        Device, typer.Option(help="cuda measures what computes there: act, training, attacks.")
    ] = Device.CPU,
) -> None:
    """Measure speed on this machine: rendering, wrapper, act, training, episodes per minute."""
    from mrvlm_sim.evaluation.bench import measurements

    for title, measure in measurements(quick, torch_device(device)):
        print_table(measure(), title)


def doctor() -> None:
    """Say what is missing on this machine and how to mend it."""
    from mrvlm_sim.doctor import examine

    findings = examine()
    table = Table("", "", "", "remedy", box=None)
    colours = {"ok": "green", "note": "yellow", "missing": "bold red"}
    for finding in findings:
        status = Text(finding.status, colours[finding.status])
        table.add_row(status, finding.name, finding.detail, finding.remedy)
    console.print(table)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)
