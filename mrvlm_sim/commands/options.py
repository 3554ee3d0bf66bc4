"""Options that several commands share."""

from typing import Annotated

import typer

Env = Annotated[str, typer.Option("--env", help="Environment: a folder in envs/.")]
Arm = Annotated[str, typer.Option("--arm", help="Arm: a folder in policies/.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a knob: ENV.KNOB=VALUE, or all.KNOB=VALUE of every environment; repeatable."),
]
Reference = Annotated[str, typer.Option(help="Policy that the others are compared with.")]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load SB3 models, which can run any code that their maker put there.")
]
