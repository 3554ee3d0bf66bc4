"""What an attacker may change, and what it knows: always of sensor pixels, before any cut."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mrvlm_sim.errors import UserError, unknown_name

Knowledge = Literal["off", "known", "unknown", "chosen"]
KNOWLEDGE: tuple[str, ...] = get_args(Knowledge)


@dataclass(frozen=True)
class Threat:
    """The size of an attack, its budget, and what the attacker knows of the jitter.

    `knowledge`: it takes the levels to be centred (off); it sees where they lie in this frame (known); it knows how
    jitter is distributed and takes the expectation over fresh draws (unknown); it decides which of as many draws the
    policy gets (chosen).

    Raises:
        UserError: a size that is no attack on 8-bit pixels, no steps or draws, or unknown knowledge.
    """

    eps: float  # largest change of any value, as a part of the pixel range
    steps: int = 10  # gradient steps; searches ask the policy QUERIES times as often
    knowledge: Knowledge = "unknown"
    draws: int = 4  # of the jitter, in every step
    restarts: int = 1  # of attacks with gradients, from other beginnings: the one that does most is kept

    def __post_init__(self) -> None:
        check_size(self.eps, self.steps)
        if self.draws < 1:
            raise UserError(f"an attack takes at least 1 draw of the jitter, not {self.draws}")
        if self.restarts < 1:
            raise UserError(f"an attack begins at least once, not {self.restarts} times")
        if self.knowledge not in KNOWLEDGE:
            raise unknown_name("knowledge of the jitter", self.knowledge, KNOWLEDGE)

    @property
    def bound(self) -> int:
        """The largest whole change of an 8-bit value."""
        return sensor_values(self.eps)


def check_size(eps: float, steps: int) -> None:
    """Refuse sizes that are no attack on 8-bit pixels.

    Raises:
        UserError: eps is negative, above 1, or below one sensor value; there are no steps.
    """
    if steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    if not 0 < eps <= 1:
        whole = f"; write {eps:g}/255 for {eps:g} sensor values" if 1 < eps <= 255 else ""
        raise UserError(f"--eps must lie in (0, 1], as a part of the pixel range such as 4/255, not {eps:g}{whole}")
    if sensor_values(eps) < 1:
        raise UserError(f"--eps {eps:g} is below 1/255 = {1 / 255:.5f}, the smallest change of an 8-bit pixel")


def sensor_values(eps: float) -> int:
    """The largest whole change of an 8-bit pixel within eps."""
    return int(np.floor(eps * 255 + 1e-6))
