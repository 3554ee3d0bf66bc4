"""The command line: parsing and printing only."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mrvlm_sim.console import bar, console, print_report, print_table, progress_bar
from mrvlm_sim.errors import UserError

if TYPE_CHECKING:
    import torch

    from mrvlm_sim.evaluation.episode import EpisodeRecord
    from mrvlm_sim.evaluation.evaluate import Evaluation

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Judge robot policies that see through jittered multi-resolution vision, side by side with uniform ViTs.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train an arm.")
app.add_typer(train_app, name="train")

Env = Annotated[str, typer.Option("--env", help="Environment: a folder in envs/.")]
Arm = Annotated[str, typer.Option("--arm", help="Arm: a folder in policies/.")]


class Device(StrEnum):
    """Where to train."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


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


@app.command("eval")
def evaluate(
    env: Env,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="An arm, expert, random, noop, module:Class, file.py:Class, folder, ws://HOST:PORT; repeatable."
        ),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Run expert, random and noop, too: ceiling and floors.")] = True,
    episodes: Annotated[int, typer.Option(help="Episodes per policy, the same for all.")] = 50,
    seed: Annotated[int, typer.Option(help="Suite seed: names the episodes.")] = 0,
    attack: Annotated[list[str] | None, typer.Option(help="pgd or noise, against clean twins; repeatable.")] = None,
    eps: Annotated[str, typer.Option(help="Size of the attack: a fraction of the pixel range.")] = "4/255",
    steps: Annotated[int, typer.Option(help="Gradient steps of the attack.")] = 10,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    video: Annotated[int, typer.Option(help="Film so many episodes per policy and condition.")] = 0,
    reference: Annotated[str, typer.Option(help="Policy that the others are compared with.")] = "uniform-256",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: one in results/runs named by what is run.")
    ] = None,
    shard: Annotated[str, typer.Option(help="Run part i of n only, as i/n from 0/n on; see merge.")] = "0/1",
    timeout: Annotated[float | None, typer.Option(help="Seconds after which an episode ends as an error.")] = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Run episodes with errors again.")] = False,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Stop an arm when it is told apart from the reference.")
    ] = False,
    max_episodes: Annotated[int, typer.Option(help="Episodes per policy at which --until-decided gives up.")] = 500,
) -> None:
    """Run policies on the same episodes and end with one table; the same command again goes on where it stopped."""
    from mrvlm_sim.agents.registry import BASELINES, shipped_arms
    from mrvlm_sim.evaluation.episode import Condition
    from mrvlm_sim.evaluation.evaluate import Evaluation, default_workers
    from mrvlm_sim.evaluation.runs import Plan
    from mrvlm_sim.tasks import environment_card

    environment_card(env)
    conditions, size = [Condition()], parse_fraction(eps)
    if attack:
        attacks = [Condition(name, "sensor", name, size, steps) for name in dict.fromkeys(attack)]
        conditions = [Condition(source="sensor"), *attacks]
    policies = policy or shipped_arms(env)
    if baselines:
        policies = [*policies, *(name for name in BASELINES if name not in policies)]
    limit = max_episodes if until_decided else episodes
    plan = Plan(env, tuple(policies), tuple(conditions), seed, limit, video, reference)
    count = default_workers() if workers is None else workers
    run = Evaluation(plan, output, count, parse_shard(shard), timeout, retry_errors, until_decided)
    if run.resumed:
        console.print(f"{run.resumed} episodes are there already", style="yellow")
    try:
        interrupted = _run_with_progress(run)
    finally:
        print_report(run.folder, run.finish(), reference, f"{env}, suite seed {seed}", run.notes())
    if interrupted:
        raise typer.Exit(130)
    if run.problems:
        raise typer.Exit(1)


@app.command()
def merge(
    output: Annotated[Path, typer.Argument(help="Folder of the merged run; may have episodes already.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of the parts, in the order of the shards.")],
    reference: Annotated[str, typer.Option(help="Policy that the others are compared with.")] = "uniform-256",
) -> None:
    """Put the episodes of several runs of one plan together, as `eval --shard` leaves them."""
    from mrvlm_sim.evaluation.merge import merge_runs
    from mrvlm_sim.evaluation.report import write_report

    merge_runs(output, runs)
    print_report(output, write_report(output, reference), reference, str(output), [])


@app.command()
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
    for note in notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)


@app.command()
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
        console.print(f"differs from the record: {difference}", style="bold red", markup=False, soft_wrap=True)
    if replayed.differences:
        raise typer.Exit(1)
    console.print("the same as recorded, to the bit")


@app.command()
def serve(
    policy: Annotated[str, typer.Argument(help="What `eval --policy` takes.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(envvar="MRVLM_SIM_TOKEN", help="Clients must know it.")] = None,
) -> None:
    """Serve a policy to `eval --policy ws://HOST:PORT` in other processes or on other machines."""
    from mrvlm_sim.agents.serve import policy_server

    try:
        server = policy_server(policy, host, port, token)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from error
    with server:
        console.print(f"serving {policy} at ws://{host}:{server.socket.getsockname()[1]}; Ctrl-C ends it")
        server.serve_forever()


@app.command()
def demos(
    env: Env,
    episodes: Annotated[int, typer.Option(help="Episodes to record.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the demonstrations.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File; default: data/demos/<env>-<episodes>-<seed>.npz.")] = None,
) -> None:
    """Record expert episodes as simulator states, with pushes so that recoveries are seen."""
    from mrvlm_sim.paths import make_parent
    from mrvlm_sim.tasks import environment_card
    from mrvlm_sim.training.demos import record
    from mrvlm_sim.training.session import DEMONSTRATIONS, demonstrations_path

    path = output or demonstrations_path(DEMONSTRATIONS, env, episodes, seed)
    environment_card(env)
    make_parent(path)
    with bar("recording", episodes) as advance:
        recorded = record(env, episodes, seed, advance)
    recorded.save(path)
    console.print(
        f"{len(recorded.states)} frames of {episodes} episodes, {recorded.success.mean():.1%} successful: {path}"
    )


@train_app.command("bc")
def train_bc(
    env: Env,
    arm: Arm,
    output: Annotated[Path | None, typer.Option(help="Folder; default: results/runs/bc-<env>-<arm>.")] = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.AUTO,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render the demonstrations.")] = 2,
    eval_every: Annotated[
        int, typer.Option(min=0, help="Updates between evaluations; a multiple of 100, 0 for none.")
    ] = 2500,
    eval_episodes: Annotated[int, typer.Option(min=1, help="Episodes of each evaluation.")] = 20,
) -> None:
    """Behaviour cloning with the recipe on the arm's card; goes on from the checkpoint if there is one."""
    from mrvlm_sim.agents.registry import arm_card
    from mrvlm_sim.evaluation.periodic import quick_success
    from mrvlm_sim.paths import runs_folder
    from mrvlm_sim.training.demos import Demonstrations
    from mrvlm_sim.training.session import Folders, get_demonstrations, make_trainer, train

    if eval_every % 100:
        raise UserError(f"--eval-every must be a multiple of 100, not {eval_every}")
    card, _ = arm_card(arm)
    if card.environment != env:
        raise UserError(f"arm {arm} belongs to environment {card.environment}, not {env}")
    recipe, folders = card.training, Folders(output or runs_folder() / f"bc-{env}-{arm}")
    with bar("demonstrations", recipe.demonstrations) as advance:
        path = get_demonstrations(
            folders.demonstrations, env, recipe.demonstrations, recipe.demonstration_seed, advance
        )
    console.print("rendering the demonstrations through this arm's eyes (kept for the next time)")
    trainer = make_trainer(card, Demonstrations.load(path), folders, torch_device(device), workers)
    if trainer.update:
        console.print(f"resuming after update {trainer.update}")
    look = (lambda policy: quick_success(policy, env, eval_episodes)) if eval_every else None
    with bar("updates", recipe.updates) as advance:

        def log(update: int, figures: dict[str, float]) -> None:
            advance(update)
            console.print(f"{update:6d}  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

        try:
            folder = train(trainer, log, look, eval_every, threads)
        except KeyboardInterrupt:
            console.print(f"saved up to update {trainer.saved}; the same command goes on from there")
            raise
    console.print(f"policy: {folder}; evaluate it with mrvlm-sim eval --env {env} --policy {folder}")


@app.command()
def cost() -> None:
    """Tokens, acuity, parameters and GFLOPs of every arm, without simulating."""
    from mrvlm_sim.evaluation.costs import cost_tables

    for title, table in cost_tables().items():
        print_table(table, title)


@app.command()
def view(
    env: Env,
    arm: Arm,
    output: Annotated[Path, typer.Option(help="A .png, or a .mp4 of a whole expert episode.")] = Path("view.png"),
    seed: Annotated[int, typer.Option(min=0, help="Which episode.")] = 0,
) -> None:
    """Show what an arm sees: the frame with the boxes, and every view with its token grid."""
    from mrvlm_sim.agents.registry import arm_card
    from mrvlm_sim.evaluation.view import save_view
    from mrvlm_sim.paths import make_parent
    from mrvlm_sim.tasks import environment_card

    if output.suffix not in (".png", ".mp4"):
        raise UserError(f"--output must end in .png or .mp4, not {output.name!r}")
    environment_card(env)
    card, _ = arm_card(arm)
    make_parent(output)
    save_view(env, card, seed, output)
    console.print(f"wrote {output}")


@app.command("list")
def list_all() -> None:
    """List environments, arms, policies and attacks."""
    from mrvlm_sim.evaluation.catalogue import catalogue

    for title, frame in catalogue().items():
        if len(frame):
            print_table(frame, title)


@app.command()
def doctor() -> None:
    """Say what is missing on this machine and how to mend it."""
    from mrvlm_sim.doctor import examine

    findings = examine()
    table = Table("", "", "", "remedy", box=None)
    colours = {"ok": "green", "note": "yellow", "missing": "bold red"}
    for finding in findings:
        status = f"[{colours[finding.status]}]{finding.status}[/]"
        table.add_row(status, finding.name, finding.detail, finding.remedy)
    console.print(table)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option(help="Fewer repetitions.")] = False,
) -> None:
    """Measure speed on this machine: rendering, wrapper, act, training, episodes per minute."""
    from mrvlm_sim.evaluation.bench import measurements

    for title, measure in measurements(quick):
        print_table(measure(), title)


def parse_fraction(text: str) -> float:
    """`4/255` or `0.0157` as a number.

    Raises:
        UserError: it is neither.
    """
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--eps must be a number or a fraction such as 4/255, not {text!r}") from error


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8): part 2 of 8, counted from 0.

    Raises:
        UserError: it is not of that form, or out of range.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise UserError(f"--shard must be i/n with 0 <= i < n, for example 0/4, not {text!r}")
    return int(part), int(parts)


def torch_device(device: Device) -> "torch.device":
    """The device that was asked for; `auto` takes CUDA where there is one."""
    import torch

    available = torch.cuda.is_available()
    if device is Device.CUDA and not available:
        raise UserError("--device cuda: this torch sees no CUDA device; use --device cpu, or see mrvlm-sim doctor")
    return torch.device("cuda" if available and device is not Device.CPU else "cpu")


def _run_with_progress(run: "Evaluation") -> bool:
    """Run the evaluation under a progress bar with running rates; whether it was interrupted."""
    done: dict[str, list[bool]] = {}
    with progress_bar() as progress:
        task = progress.add_task("episodes", total=len(run.jobs))

        def advance(record: "EpisodeRecord") -> None:
            done.setdefault(record.policy, []).append(record.success)
            rate = f"{record.policy} {sum(done[record.policy])}/{len(done[record.policy])}"
            progress.update(task, advance=1, description=rate)

        try:
            run.run(advance)
        except KeyboardInterrupt:
            return True
    return False


if __name__ == "__main__":
    main()
