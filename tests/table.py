"""What tests of several tasks ask of a scene on the table."""

import numpy as np

from mrvlm_sim.sim.env import ManipulationEnv
from mrvlm_sim.sim.scene import Scene
from mrvlm_sim.tasks import make_env
from mrvlm_sim.tasks.tabletop import COLOURS


def colour(scene: Scene, geom: str) -> str:
    """The name of the colour that a geom is painted in."""
    rgb = scene.model.geom(geom).rgba[:3]
    return min(COLOURS, key=lambda name: np.abs(rgb - COLOURS[name]).max())


def expert_ends_it(env: ManipulationEnv) -> bool:
    """Whether the expert, from here on, ends the episode by success."""
    over = terminated = False
    while not over:
        *_, terminated, truncated, _ = env.step(env.expert_action())
        over = terminated or truncated
    return terminated


def spoken(reference: str, slot: str, episodes: int = 60) -> tuple[set[str], set[str]]:
    """The phrases, with their colour replaced by `slot`, and the colours of an environment's instructions."""
    env = make_env(reference)
    said = {env.reset(seed=seed)[1]["instruction"] for seed in range(episodes)}
    env.close()
    pairs = {(text.replace(name, slot), name) for text in said for name in COLOURS if name in text}
    return {phrase for phrase, _ in pairs}, {name for _, name in pairs}
