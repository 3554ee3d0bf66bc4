"""Making policies: `demos` and `train`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrvlm_sim.commands.options import Arm, Device, Env, Eyes, Init, torch_device
from mrvlm_sim.console import bar, console, log_updates
from mrvlm_sim.errors import UserError

if TYPE_CHECKING:
    from mrvlm_sim.agents.card import AdversarialTraining, PolicyCard
    from mrvlm_sim.training.demos import Demonstrations
    from mrvlm_sim.training.session import Folders


class Adversary(StrEnum):
    """What attacks batches of training."""

    PGD = "pgd"
    FGSM = "fgsm"


def demos(
    env: Env,
    episodes: Annotated[int, typer.Option(help="Episodes to record.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the demonstrations.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File; default: data/demos/<env>-<episodes>-<seed>.npz.")] = None,
) -> None:
    """Record expert episodes as simulator states, with pushes so that recoveries are seen."""
    from mrvlm_sim.paths import make_parent
    from mrvlm_sim.tasks import own_card
    from mrvlm_sim.training.demos import record
    from mrvlm_sim.training.session import DEMONSTRATIONS, demonstrations_path

    path = output or demonstrations_path(DEMONSTRATIONS, env, episodes, seed)
    own_card(env)
    make_parent(path)
    with bar("recording", episodes) as advance:
        recorded = record(env, episodes, seed, advance)
    recorded.save(path)
    console.print(
        f"{len(recorded.states)} frames of {episodes} episodes, {recorded.success.mean():.1%} successful: {path}"
    )


def train_bc(
    arm: Arm,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="Environment; repeatable; all: the suite's own. Default: those on the arm's card."),
    ] = None,
    eyes: Eyes = None,
    adversarial: Annotated[
        Adversary | None, typer.Option(help="Attack every batch before it is learned from; fgsm takes one step.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Size of that attack, as 4/255.")] = None,
    init: Init = None,
    updates: Annotated[int | None, typer.Option(min=1, help="How many; default: the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder; default: one in results/runs.")] = None,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.AUTO,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render the demonstrations.")] = 2,
    eval_every: Annotated[
        int, typer.Option(min=0, help="Updates between evaluations; a multiple of 100, 0 for none.")
    ] = 2500,
    eval_episodes: Annotated[int, typer.Option(min=1, help="Episodes of each evaluation.")] = 20,
) -> None:
    """Behaviour cloning with the recipe on the arm's card; goes on from the checkpoint if there is one."""
    import torch

    from mrvlm_sim.agents.registry import arm_card
    from mrvlm_sim.evaluation.periodic import quick_success
    from mrvlm_sim.tasks import chosen_environments, own_card, split_settings
    from mrvlm_sim.training.initial import initial
    from mrvlm_sim.training.session import Folders, default_output, make_trainer, train

    if eval_every % 100:
        raise UserError(f"--eval-every must be a multiple of 100, not {eval_every}")
    adversary = _adversary(adversarial, eps)
    card = arm_card(arm)[0].with_eyes(eyes)
    card = card.with_recipe(adversary=adversary, updates=updates, **initial(init))
    if env:
        card = card.model_copy(update={"environments": chosen_environments(env)})
    for name in card.environments:
        own_card(name)
    folders = Folders(output or default_output(card, "-".join(filter(None, (arm, eyes, adversarial)))))
    demonstrations = [_demonstrations(folders, card, name) for name in card.environments]
    console.print("rendering the demonstrations through this arm's eyes (kept for the next time)")
    trainer = make_trainer(card, demonstrations, folders, torch.device(torch_device(device)), workers)
    if trainer.update:
        console.print(f"resuming after update {trainer.update}")
    look = (lambda policy: quick_success(policy, card.environments, eval_episodes)) if eval_every else None
    with bar("updates", card.cloning.updates) as advance:
        try:
            folder = train(trainer, log_updates(advance), look, eval_every, threads)
        except KeyboardInterrupt:
            console.print(f"saved up to update {trainer.saved}; the same command goes on from there")
            raise
    chosen = " ".join(f"--env {split_settings(name)[0]}" for name in card.environments)
    console.print(f"policy: {folder}; evaluate it with mrvlm-sim eval {chosen} --policy {folder}")


def _adversary(attack: Adversary | None, eps: str | None) -> "AdversarialTraining | None":
    from mrvlm_sim.agents.card import AdversarialTraining
    from mrvlm_sim.commands.evaluating import parse_fraction
    from mrvlm_sim.metrics.attacks import check_size

    if (attack is None) != (eps is None):
        raise UserError("adversarial training takes both --adversarial and --eps, as --adversarial pgd --eps 4/255")
    if attack is None or eps is None:
        return None
    size = parse_fraction(eps)
    check_size(size, 1)
    adversary = AdversarialTraining(eps=size)
    return adversary.model_copy(update={"steps": 1}) if attack is Adversary.FGSM else adversary


def train_rl(
    arm: Arm,
    env: Env,
    algo: Annotated[str, typer.Option(help="Algorithm of stable-baselines3: ppo or sac.")] = "ppo",
    init: Init = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of all environments together; default: the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Training seed; default: the recipe's.")] = None,
    eyes: Eyes = None,
    output: Annotated[Path | None, typer.Option(help="Folder; default: one in results/runs.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    eval_episodes: Annotated[int, typer.Option(min=0, help="Episodes after every segment; 0 for none.")] = 20,
) -> None:
    """Reinforcement learning by dense reward; goes on from the checkpoint if there is one.

    The encoder learns where things are from every rollout's frames, the actor from what the encoder sees, the critic
    from the truth; what is saved is a policy like any other, which sees through its cameras alone.
    """
    import torch

    from mrvlm_sim.evaluation.periodic import quick_success
    from mrvlm_sim.paths import runs_folder
    from mrvlm_sim.tasks import own_card, split_settings
    from mrvlm_sim.training.rl.recipe import reinforcement_card
    from mrvlm_sim.training.rl.session import Reinforcement, finish

    own_card(env)
    card = reinforcement_card(arm, env, algo, init, {"steps": steps, "seed": seed}, eyes)
    name = f"{algo}-{split_settings(env)[0]}-{f'{arm}-{eyes}' if eyes else arm}-{card.training.seed}".replace("/", "-")
    torch.set_num_threads(threads)
    training = Reinforcement(card, env, output or runs_folder() / name)
    if training.saved:
        console.print(f"resuming after step {training.saved}")
    look = (lambda policy: quick_success(policy, [env], eval_episodes)) if eval_episodes else None
    try:
        with bar("steps", training.recipe.steps) as advance:
            training.run(look, log_updates(advance))
    except KeyboardInterrupt:
        console.print(f"saved up to step {training.saved}; the same command goes on from there")
        raise
    folder = finish(training)
    console.print(f"policy: {folder}; evaluate it with mrvlm-sim eval --env {env} --policy {folder}")


def train_adversary(
    env: Env,
    policy: Annotated[str, typer.Option(help="An arm with weights, or a policy folder.")],
    eps: Annotated[str, typer.Option(help="Size of its attacks.")] = "4/255",
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of every attack.")] = 3,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the jitter in every step.")] = 2,
    decisions: Annotated[int, typer.Option(min=1, help="Looks that it learns from; a multiple of 256.")] = 8192,
    seed: Annotated[int, typer.Option(min=0, help="Training seed.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder; default: one in results/runs.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
) -> None:
    """An adversary that learns by PPO where to drive a policy's actions; goes on from the checkpoint if there is one.

    What it learned is tried with mrvlm-sim attack --adversary FOLDER.
    """
    import torch

    from mrvlm_sim.agents.registry import load_policy, policy_identity, policy_name, short_identity
    from mrvlm_sim.commands.evaluating import parse_fraction
    from mrvlm_sim.metrics.attacks import check_size
    from mrvlm_sim.metrics.attacks.directed import AdversaryCard
    from mrvlm_sim.paths import runs_folder
    from mrvlm_sim.tasks import own_card
    from mrvlm_sim.training.adversary import AdversaryTraining

    own_card(env)
    size = parse_fraction(eps)
    check_size(size, steps)
    torch.set_num_threads(threads)
    name = policy_name(policy)
    card = AdversaryCard(
        environment=env, policy=name, identity=short_identity(policy_identity(policy)), eps=size, steps=steps,
        draws=draws, training_steps=decisions, seed=seed, sizes=[1, 1],
    )  # fmt: skip
    folder = output or runs_folder() / f"adversary-{env}-{name}-{seed}".replace("/", "-")
    training = AdversaryTraining(load_policy(policy), card, folder)
    if training.saved:
        console.print(f"resuming after decision {training.saved}")
    try:
        with bar("decisions", decisions) as advance:
            found = training.run(log_updates(advance))
    except KeyboardInterrupt:
        console.print(f"saved up to decision {training.saved}; the same command goes on from there")
        raise
    console.print(f"adversary: {found}; try it: mrvlm-sim attack --env {env} --policy {policy} --adversary {found}")


def _demonstrations(folders: "Folders", card: "PolicyCard", env: str) -> "Demonstrations":
    from mrvlm_sim.tasks import split_settings
    from mrvlm_sim.training.demos import Demonstrations
    from mrvlm_sim.training.session import get_demonstrations

    recipe = card.cloning
    with bar(f"demonstrations of {split_settings(env)[0]}", recipe.demonstrations) as advance:
        path = get_demonstrations(
            folders.demonstrations, env, recipe.demonstrations, recipe.demonstration_seed, advance
        )
    return Demonstrations.load(path)
