"""Tasks: one module per task, of the same name as the folders in `envs/` that use it."""

from mrvlm_sim.tasks.registry import make_env, register_environments

__all__ = ["make_env", "register_environments"]
