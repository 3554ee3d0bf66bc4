"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Env = Annotated[str, typer.Option("--env", help="Environment: a folder in envs/.")]
Arm = Annotated[str, typer.Option("--arm", help="Arm: a folder in policies/.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="An arm, expert, random, noop, module:Class, file.py:Class, folder, ws://HOST:PORT, "
        "openpi://HOST:PORT or its card.toml, model.zip of SB3; repeatable.",
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
