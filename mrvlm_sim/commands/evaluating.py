"""Scoring policies: `eval`, and `serve` for policies that stay elsewhere."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrvlm_sim.commands.options import (
    Computing,
    Device,
    OtherEyes,
    Policies,
    Reference,
    Settings,
    TrustPickle,
    torch_device,
)
from mrvlm_sim.console import console, print_report, print_table, run_with_progress
from mrvlm_sim.errors import UserError

if TYPE_CHECKING:
    from mrvlm_sim.evaluation.condition import Condition
    from mrvlm_sim.evaluation.evaluate import Evaluation

SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)  # as many as the corruption benchmarks of image classifiers have


def evaluate(
    env: Annotated[
        list[str],
        typer.Option("--env", help="Environment: a folder in envs/; repeatable; all: the suite's own."),
    ],
    policy: Policies = None,
    baselines: Annotated[bool, typer.Option(help="Run expert, random and noop, too: ceiling and floors.")] = True,
    episodes: Annotated[int, typer.Option(help="Episodes per policy, the same for all.")] = 50,
    seed: Annotated[int, typer.Option(help="Suite seed: names the episodes.")] = 0,
    settings: Settings = None,
    attack: Annotated[list[str] | None, typer.Option(help="See list; with clean twins; repeatable.")] = None,
    eps: Annotated[
        str | None, typer.Option(help="Size of the attack: a fraction of the pixel range. Default: 4/255.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Gradient steps of the attack.")] = 10,
    shift: Annotated[
        list[str] | None,
        typer.Option(
            help="lighting, colours, texture, camera, distractors, delay, phrases; noise, blur, brightness, "
            "compression, occlusion; repeatable."
        ),
    ] = None,
    severity: Annotated[
        list[str] | None,
        typer.Option(help="Of every shift, from 0 to 1, or all: 0.2, 0.4 ... 1; repeatable. Default: 0.5."),
    ] = None,
    eyes: OtherEyes = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core (of the cluster).")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Run on Ray: local, or from a node of the cluster auto or HOST:PORT.")
    ] = None,
    video: Annotated[int, typer.Option(help="Film so many episodes per policy and condition.")] = 0,
    reference: Reference = "uniform-256",
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
    trust_pickle: TrustPickle = False,
    device: Computing = Device.CPU,
) -> None:
    """Run policies on the same episodes and end with one table; the same command again goes on where it stopped."""
    from mrvlm_sim.agents.registry import fitting_baselines, policy_name, shipped_arms
    from mrvlm_sim.evaluation.evaluate import Evaluation
    from mrvlm_sim.evaluation.runs import Plan
    from mrvlm_sim.evaluation.suite import suite_tables, write_suite
    from mrvlm_sim.evaluation.tables import reference_among
    from mrvlm_sim.tasks import chosen_environments, split_settings

    conditions = _conditions(attack or [], eps, steps, shift or [], severity or [], eyes or [])
    limit, folders, failed = (max_episodes if until_decided else episodes), dict[str, Path](), False
    environments = chosen_environments(env, settings or [])
    arms, plans = policy or shipped_arms(environments), dict[str, Plan]()
    where = torch_device(Device.CPU if cluster and device is Device.AUTO else device)
    for name in environments:
        policies = arms or shipped_arms([name])
        if baselines:
            policies = [*policies, *(other for other in fitting_baselines(name) if other not in policies)]
        meant = reference_among(map(policy_name, policies), reference)
        how = video, meant, trust_pickle, where
        plans[name] = Plan(name, tuple(policies), tuple(conditions), seed, limit, *how)
    for name, plan in plans.items():
        folder = output / split_settings(name)[0] if output is not None and len(environments) > 1 else output
        run = Evaluation(plan, folder, workers, parse_shard(shard), timeout, retry_errors, until_decided, cluster)
        folders[name], failed = run.folder, failed or bool(run.problems)
        if _run(run, plan.reference, f"{name}, suite seed {seed}"):
            raise typer.Exit(130)
    if len(folders) > 1:
        tables = suite_tables(folders, next(iter(plans.values())).reference)
        for table in tables:
            print_table(table, f"success %, suite seed {seed}")
        if output is not None:
            write_suite(output, tables)
    if failed:
        raise typer.Exit(1)


def _conditions(
    attacks: list[str], eps: str | None, steps: int, shifts: list[str], severities: list[str], eyes: list[str]
) -> "list[Condition]":
    from mrvlm_sim.evaluation.condition import conditions_of

    if severities and not shifts:
        raise UserError("--severity is that of shifts; name some with --shift, or leave it out")
    if eps is not None and not attacks:
        raise UserError("--eps is the size of attacks; name some with --attack, or leave it out")
    size, changes = (
        parse_fraction(eps or "4/255"),
        [*product(dict.fromkeys(shifts), parse_severities(severities or ["0.5"]))],
    )
    return conditions_of(list(dict.fromkeys(attacks)), size, steps, changes, list(dict.fromkeys(eyes)))


def _run(run: "Evaluation", reference: str, title: str) -> bool:
    """Carry out one environment's plan and print its table; whether it was interrupted."""
    from mrvlm_sim.evaluation.robustness import unfit_notes

    if run.resumed:
        console.print(f"{run.resumed} episodes are there already", style="yellow")
    try:
        return run_with_progress(run)
    finally:
        notes = [*run.notes(), *unfit_notes(run.policies, run.plan.conditions)]
        print_report(run.folder, run.finish(), reference, title, notes)


def serve(
    policy: Annotated[str, typer.Argument(help="What `eval --policy` takes.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(envvar="MRVLM_SIM_TOKEN", help="Clients must know it.")] = None,
    trust_pickle: TrustPickle = False,
    device: Computing = Device.CPU,
) -> None:
    """Serve a policy to `eval --policy ws://HOST:PORT` in other processes or on other machines."""
    from mrvlm_sim.agents.serve import policy_server

    try:
        server = policy_server(policy, host, port, token, trust_pickle, torch_device(device))
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from error
    with server:
        console.print(f"serving {policy} at ws://{host}:{server.socket.getsockname()[1]}; Ctrl-C ends it")
        server.serve_forever()


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


def parse_severities(texts: list[str]) -> list[float]:
    """Each severity once; `all` stands for five of them.

    Raises:
        UserError: one is no number.
    """
    try:
        found = [number for text in texts for number in (SEVERITIES if text == "all" else [float(text)])]
    except ValueError as error:
        raise UserError(f"--severity takes numbers from 0 to 1, or all, not {', '.join(texts)}") from error
    return list(dict.fromkeys(found))


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8): part 2 of 8, counted from 0.

    Raises:
        UserError: it is not of that form, or out of range.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise UserError(f"--shard must be i/n with 0 <= i < n, for example 0/4, not {text!r}")
    return int(part), int(parts)
