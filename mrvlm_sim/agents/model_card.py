"""The model card that lies beside a policy's weights, written from the policy card."""

from mrvlm_sim.agents.card import CloningRecipe, PolicyCard, ReinforcementRecipe

TEXT = """# {summary}

A policy for mrvlm_sim's {tasks}, trained by {method}.

- **Sees**: {eyes}.
- **Network**: ViT of width {network.width} and depth {network.depth}, `{network.fusion}` fusion, chunks of \
{network.chunk} actions, of which {execute} are carried out before it looks again.
- **Trained** {budget}, training seed {training.seed}, {weights.minutes:g} minutes on {weights.device}.
- **Meant for** comparing ways of seeing within this suite. It was trained in simulation only and must not drive \
a real robot.
- **Known weaknesses**: {weakness}; knows only the words of its tasks' instructions.

Everything needed to train it again is in `policy.toml`; how it did, with intervals, is in `results/`.
"""

UNDEFENDED = "undefended against adversarial frames"
HARDENED = "learned from frames attacked by up to {:g}/255, and is undefended against more"
BY_REWARD = "by dense reward, its encoder by where things are in the simulation"
FOR_STEPS = "for {training.steps} steps, its encoder before on {training.pretraining_scenes} scenes"
METHODS = {
    "bc": (
        "behaviour cloning of the suite's scripted experts",
        "on {training.demonstrations} demonstrations of each task (seed {training.demonstration_seed}), one frame in "
        "{training.stride}: {training.updates} updates of {training.batch} frames",
    ),
    "ppo": (f"reinforcement learning (PPO) {BY_REWARD}", FOR_STEPS),
    "sac": (f"reinforcement learning (SAC) {BY_REWARD}", FOR_STEPS),
}


def model_card(card: PolicyCard) -> str:
    """Markdown for a trained policy."""
    cameras = [
        f"camera `{camera}`, {' + '.join(f'{grid}x{grid}' for grid in pyramid.grids)} tokens of "
        f"{pyramid.patch}-pixel patches from a {pyramid.frame_size}-pixel sensor"
        for camera, pyramid in card.cameras.items()
    ]
    tasks = ", ".join(f"`{name}`" for name in card.environments)
    method, budget = METHODS[card.training.method]
    named = {"tasks": f"task{'s' * (len(card.environments) > 1)} {tasks}", "eyes": "; ".join(cameras)}
    if isinstance(card.training, ReinforcementRecipe) and card.training.init is not None:
        budget += ", beginning as `{training.init}`"
    hardened = isinstance(card.training, CloningRecipe) and card.training.adversary
    named["weakness"] = HARDENED.format(255 * hardened.eps) if hardened else UNDEFENDED
    return TEXT.format(**dict(card), **named, method=method, budget=budget.format(training=card.training))
