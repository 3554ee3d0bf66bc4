"""Attacking policies: `attack`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mrvlm_sim.commands.evaluating import parse_fraction
from mrvlm_sim.commands.options import Computing, Device, Env, Settings, TrustPickle, torch_device
from mrvlm_sim.console import console, print_notes, print_table, run_with_progress
from mrvlm_sim.errors import UserError, unknown_name

if TYPE_CHECKING:
    from mrvlm_sim.evaluation.evaluate import Evaluation
    from mrvlm_sim.metrics.attacks import Knowledge


class Preset(StrEnum):
    """How hard to attack."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


def attack(
    env: Env,
    policy: Annotated[list[str], typer.Option(help="What `eval --policy` takes; repeatable.")],
    budget: Annotated[Preset, typer.Option(help="Attacks, steps, draws and episodes, where they are not given.")] = (
        Preset.QUICK
    ),
    attack: Annotated[list[str] | None, typer.Option(help="See mrvlm-sim list; repeatable.")] = None,
    eps: Annotated[list[str] | None, typer.Option(help="Sizes, as 4/255; repeatable. Default: 4/255.")] = None,
    knowledge: Annotated[
        list[str] | None, typer.Option(help="Of the jitter: off, known, unknown or chosen; repeatable.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="frame, patch or patch@U,V (5 %, with --eps 1), or ring@A-B; repeatable."),
    ] = None,
    surrogate: Annotated[list[str] | None, typer.Option(help="Arm that attacks are also found on; repeatable.")] = None,
    adversary: Annotated[
        list[str] | None, typer.Option(help="Folder of a trained adversary, which directs an attack; repeatable.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps; default: the budget's.")] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Draws of the jitter in every step.")] = None,
    restarts: Annotated[int | None, typer.Option(min=1, help="Of attacks with gradients; the best is kept.")] = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="Per policy and attack.")] = None,
    until_broken: Annotated[
        bool, typer.Option("--until-broken", help="Leave out what is broken already: the same worst case, sooner.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Suite seed: names the episodes.")] = 0,
    settings: Settings = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which an episode ends as an error.")] = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Run episodes with errors again.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; default: one in results/runs.")] = None,
    trust_pickle: TrustPickle = False,
    device: Computing = Device.CPU,
) -> None:
    """Attack policies in closed loop, beside clean twins of the same episodes, and say what the worst attack leaves.

    The same command again goes on where it stopped.
    """
    from mrvlm_sim.evaluation.evaluate import Evaluation
    from mrvlm_sim.evaluation.robustness import BUDGETS, attack_conditions, check_attackable, preset_attacks
    from mrvlm_sim.evaluation.runs import Plan
    from mrvlm_sim.tasks import with_settings

    preset, env = BUDGETS[budget], with_settings(env, settings or [])
    conditions = attack_conditions(
        list(dict.fromkeys([*(attack or preset_attacks(budget, env)), *["directed"] * bool(adversary)])),
        [parse_fraction(size) for size in dict.fromkeys(eps or ["4/255"])],
        steps or preset.steps,
        draws or preset.draws,
        _knowledge(knowledge or ["unknown"]),
        list(dict.fromkeys(region or ["frame"])),
        list(dict.fromkeys(surrogate or [])),
        restarts or preset.restarts,
        list(dict.fromkeys(adversary or [])),
    )
    chosen = tuple(dict.fromkeys(policy))
    episodes, where = episodes or preset.episodes, torch_device(device)
    plan = Plan(env, chosen, tuple(conditions), seed, episodes, trust_pickle=trust_pickle, device=where)
    policies, problems = plan.load()
    if problems:
        raise UserError("\n".join(problems.values()))
    notes = check_attackable(policies, conditions)
    run = Evaluation(plan, output, workers, timeout=timeout, retry_errors=retry_errors, until_broken=until_broken)
    if run.resumed:
        console.print(f"{run.resumed} episodes are there already", style="yellow")
    try:
        interrupted = run_with_progress(run)
    finally:
        _report(run, f"{env}, suite seed {seed}", notes)
    if interrupted:
        raise typer.Exit(130)


def _report(run: "Evaluation", title: str, notes: Sequence[str]) -> None:
    """What the attacks did, from what is finished of the run."""
    from mrvlm_sim.evaluation.report import run_notes
    from mrvlm_sim.evaluation.robustness import pretty_robustness, write_robustness

    if not run.finish().empty:
        print_table(pretty_robustness(write_robustness(run.folder)), title)
    print_notes([*notes, *run_notes(run.folder)])
    console.print(f"results: {run.folder}")


def _knowledge(names: list[str]) -> "list[Knowledge]":
    from mrvlm_sim.metrics.attacks import KNOWLEDGE

    for name in names:
        if name not in KNOWLEDGE:
            raise unknown_name("knowledge of the jitter", name, KNOWLEDGE)
    return cast("list[Knowledge]", list(dict.fromkeys(names)))


def audit(
    env: Env,
    policy: Annotated[str, typer.Option(help="An arm with weights, or a policy folder.")],
    eps: Annotated[str, typer.Option(help="Size of the attacks that are judged.")] = "4/255",
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 20,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the jitter in every step.")] = 4,
    attack: Annotated[str, typer.Option(help="The attack that is judged: pgd or apgd.")] = "apgd",
    looks: Annotated[int, typer.Option(min=4, help="Single looks on which attacks are compared.")] = 24,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of what only whole episodes show.")] = 10,
    surrogate: Annotated[list[str] | None, typer.Option(help="Arm to transfer from; repeatable.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Names looks and episodes.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder; default: one in results/runs.")] = None,
    device: Computing = Device.CPU,
) -> None:
    """Are the attacks on a policy as strong as they should be? Every gate passes, fails, is open, or was not run.

    A claim of robustness whose gates do not all pass is inconclusive.
    """
    from mrvlm_sim.agents.registry import load_policy, policy_name
    from mrvlm_sim.evaluation.audit import Audit
    from mrvlm_sim.evaluation.evaluate import Evaluation
    from mrvlm_sim.evaluation.gates import audit_table, closed_loop_gates, loop_bound_gate, verdict
    from mrvlm_sim.evaluation.ledger import ledger, pretty_ledger
    from mrvlm_sim.evaluation.robustness import attack_conditions, write_robustness
    from mrvlm_sim.evaluation.runs import Plan
    from mrvlm_sim.evaluation.store import read_episodes, read_parts
    from mrvlm_sim.evaluation.verdicts import check_audited_by
    from mrvlm_sim.metrics.attacks import Threat
    from mrvlm_sim.paths import write_atomically

    size = parse_fraction(eps)
    threat, where = Threat(size, steps, draws=draws), torch_device(device)
    examined = Audit(load_policy(policy, device=where), env, threat, looks, seed, attack, surrogate or [])
    conditions = attack_conditions([attack, "features"], [size, 0.5, 1.0], steps, draws)
    plan = Plan(env, (policy, "random"), tuple(conditions), seed, episodes, device=where)
    _, problems = plan.load()
    if problems:
        raise UserError("\n".join(problems.values()))
    check_audited_by(output, attack)
    run = Evaluation(plan, output, workers)
    console.print(f"comparing attacks on {looks} looks")
    gates, randomness = examined.run(), ledger(examined)
    interrupted = run_with_progress(run)
    run.finish()
    if interrupted:
        raise typer.Exit(130)
    table, name = write_robustness(run.folder), policy_name(policy)
    chance = float(table.loc[table["policy"] == "random", "rate"].iloc[0])
    gates += closed_loop_gates(table[table["policy"] == name], chance)
    gates.append(loop_bound_gate(read_episodes(run.folder), read_parts(run.folder, "condition")))
    shown = audit_table(gates)
    write_atomically(run.folder / "audit.csv", shown.to_csv(index=False))
    owed = pretty_ledger(randomness)
    write_atomically(run.folder / "ledger.csv", randomness.to_csv(index=False))
    parts = [shown.to_markdown(index=False), verdict(gates), owed.to_markdown(index=False)]
    write_atomically(run.folder / "audit.md", "\n\n".join(parts) + "\n")
    print_table(owed, f"what {attack} does to {name} by what it knows of the jitter")
    print_table(shown, f"audit of {attack} on {name} in {env} at {eps}")
    console.print(verdict(gates), soft_wrap=True)
    console.print(f"results: {run.folder}")


def rings(
    env: Env,
    policy: Annotated[list[str], typer.Option(help="An arm with weights, or a policy folder; repeatable.")],
    eps: Annotated[str, typer.Option(help="Size of the attack.")] = "8/255",
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 10,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the jitter in every step.")] = 4,
    attack: Annotated[str, typer.Option(help="The attack: pgd or apgd.")] = "apgd",
    looks: Annotated[int, typer.Option(min=2, help="Single looks of clean episodes, of every policy's own.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Names the looks.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder; default: results/runs/rings-<env>.")] = None,
    device: Computing = Device.CPU,
) -> None:
    """Where in the image attacks bite: in rings around the middle, made comparable in three ways, for every arm."""
    from contextlib import closing

    from mrvlm_sim.agents.registry import load_policy, policy_identity, policy_name, short_identity
    from mrvlm_sim.evaluation.audit import check_judged
    from mrvlm_sim.evaluation.episode import victim_of
    from mrvlm_sim.evaluation.moments import sample_moments
    from mrvlm_sim.evaluation.rings import only_camera, pretty_rings, ring_looks, write_rings
    from mrvlm_sim.metrics.attacks import DifferentiablePolicy, Threat
    from mrvlm_sim.paths import runs_folder
    from mrvlm_sim.tasks import make_env, split_settings

    check_judged(attack)
    threat, where = Threat(parse_fraction(eps), steps, draws=draws), torch_device(device)
    policies = {policy_name(each): load_policy(each, device=where) for each in policy}
    for name, each in policies.items():
        if not isinstance(each, DifferentiablePolicy):
            raise UserError(f"rings are attacked with gradients, which {name} does not give; take an arm with weights")
        only_camera(name, victim_of(each))
    camera = next(iter(victim_of(next(iter(policies.values()))).pyramids))
    with closing(make_env(env)) as made:
        fovy = float(made.model.camera(made.renderer.cameras[camera]).fovy[0])
    moments = {name: sample_moments(each, env, looks, seed) for name, each in policies.items()}
    identities = {policy_name(each): short_identity(policy_identity(each)) for each in policy}
    found = ring_looks(policies, moments, threat, fovy, seed, attack)
    found = found.assign(environment=env, attack=attack, steps=steps, draws=draws, device=where)
    found["identity"] = found["policy"].map(identities)
    folder = output or runs_folder() / f"rings-{split_settings(env)[0].replace('/', '-')}"
    shown = pretty_rings(write_rings(folder, found))
    print_table(shown, f"{attack} at {eps} in rings of {env}: actions moved, % of their range [95 % CI]")
    console.print(f"results: {folder}")


def verdicts(
    attacked: Annotated[list[Path], typer.Argument(help="Runs of attack, one for every environment.")],
    reference: Annotated[str, typer.Option(help="Policy that the others are to be more robust than.")],
    audit: Annotated[list[Path] | None, typer.Option(help="Folder of an audit; repeatable.")] = None,
    rings: Annotated[list[Path] | None, typer.Option(help="Folder of rings; repeatable.")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="Of those attacked, what to speak of beside the reference; default: all.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="Policy among the rings that only averages the frame down; others are held to it."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for tables and picture; default: results/runs/verdicts.")
    ] = None,
) -> None:
    """What attacks, audits and rings together leave of the promises: supported, refuted or inconclusive."""
    from mrvlm_sim.evaluation.verdicts import write_verdicts
    from mrvlm_sim.paths import runs_folder

    if control is not None and not rings:
        raise UserError(f"--control {control} is what rings are held to; give --rings, or leave it out")
    folder = output or runs_folder() / "verdicts"
    found = write_verdicts(folder, attacked, audit or [], rings or [], reference, control, policy or [])
    if found.empty:
        print_notes(["nothing to judge: attack by 4/255, and a policy beside the reference; or give --audit, --rings"])
    else:
        print_table(found, "promises of robustness")
    console.print(f"results: {folder}")
