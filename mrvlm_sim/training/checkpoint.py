"""Checkpoints: written whole or not at all, read without unpickling."""

import pickle
from pathlib import Path
from typing import Any

import torch

from mrvlm_sim.errors import UserError


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write it, atomically; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def read_checkpoint(path: Path, device: torch.device, identity: str) -> dict[str, Any]:
    """What was written; `identity` is the key of it that says which training it is of.

    Raises:
        UserError: it is damaged, or of another kind of training.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is truncated or damaged; delete it to start again") from error
    if identity not in state:
        raise UserError(f"{path} is of another kind of training; choose another --output")
    return state
