"""Tasks: one module per task, of the same name as the folders in `envs/` that use it."""

from mrvlm_sim.tasks.registry import chosen_environments, environment_card, make_env, make_own_env, make_task, own_card
from mrvlm_sim.tasks.settings import split_settings, with_settings

__all__ = [
    "chosen_environments",
    "environment_card",
    "make_env",
    "make_own_env",
    "make_task",
    "own_card",
    "split_settings",
    "with_settings",
]
