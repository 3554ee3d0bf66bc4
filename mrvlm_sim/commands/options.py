"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mrvlm_sim.errors import UserError

Env = Annotated[str, typer.Option("--env", help="Environment: a folder in envs/.")]
Arm = Annotated[str, typer.Option("--arm", help="Arm: a folder in policies/.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="An arm, expert, random, noop, module:Class, file.py:Class, folder, ws://HOST:PORT, "
        "openpi://HOST:PORT or its card.toml, model.zip of SB3; repeatable. "
        "An arm or a folder with \\[execute=1] after it looks in every step.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a knob: ENV.KNOB=VALUE, or all.KNOB=VALUE of every environment; repeatable."),
]
Reference = Annotated[str, typer.Option(help="Policy that the others are compared with.")]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load SB3 models, which can run any code that their maker put there.")
]
Eyes = Annotated[
    str | None,
    typer.Option(
        help="Other eyes than the arm's own: still, tremor, drift, saccade, boxes-hidden, boxes-wrong, full-view, "
        "finest-level, gaze-random, gaze-oracle or gaze-policy."
    ),
]
Init = Annotated[Path | None, typer.Option(help="Folder of a trained policy of this arm to begin with.")]
OtherEyes = Annotated[
    list[str] | None,
    typer.Option(
        "--eyes",
        help="Look through other eyes, too: still, tremor, drift, saccade, boxes-hidden, boxes-wrong, gaze-random "
        "or gaze-oracle; repeatable.",
    ),
]


class Device(StrEnum):
    """Where networks compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Computing = Annotated[
    Device, typer.Option("--device", help="Where policies compute; another device gives other last digits.")
]


def torch_device(device: Device) -> str:
    """The device that was asked for, as torch calls it; `auto` takes CUDA where there is one."""
    if device is Device.CPU:
        return device.value
    import torch

    if torch.cuda.is_available():
        return Device.CUDA.value
    if device is Device.CUDA:
        raise UserError("--device cuda: this torch sees no CUDA device; use --device cpu, or see mrvlm-sim doctor")
    return Device.CPU.value
