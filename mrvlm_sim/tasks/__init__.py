"""Tasks: one module per task, of the same name as the folders in `envs/` that use it."""

from mrvlm_sim.tasks.registry import environment_card, make_env, make_task

__all__ = ["environment_card", "make_env", "make_task"]
