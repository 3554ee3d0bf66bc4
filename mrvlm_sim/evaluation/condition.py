"""What an episode is run under: the same policy clean, attacked, in a changed world, or through other eyes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrvlm_sim.agents.policy import Policy, requirements_of
from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.metrics.attacks import ATTACKS, Knowledge, Threat, make_mask
from mrvlm_sim.vision import Pyramid
from mrvlm_sim.vision.eyes import EYES, changed_eyes
from mrvlm_sim.wrappers.shift import Shift
from mrvlm_sim.wrappers.shifts import SHIFTS, check_shift
from mrvlm_sim.wrappers.tokens import Source

LATER = {  # what runs of old do not speak of, and what it was
    "knowledge": "unknown",
    "draws": 4,
    "region": "frame",
    "surrogate": None,
    "restarts": 1,
    "adversary": None,
}


@dataclass(frozen=True)
class Condition:
    """What an episode is run under: the source of its views and, possibly, an attack, a shift or other eyes."""

    name: str = "clean"
    source: Source = "nested"
    attack: str | None = None
    eps: float = 0.0
    steps: int = 10
    shift: str | None = None
    severity: float = 0.0
    eyes: str | None = None
    knowledge: Knowledge = "unknown"  # of the jitter, of an attacker
    draws: int = 4  # of the jitter, in every step of an attack
    region: str = "frame"  # that an attack may change
    surrogate: str | None = None  # a policy that the attack is found on, if not the one it is meant for
    restarts: int = 1  # of an attack with gradients
    adversary: str | None = None  # folder of a trained one, which says where `directed` drives the actions

    def __post_init__(self) -> None:
        if self.eyes is not None and self.eyes not in EYES:
            raise unknown_name("eyes", self.eyes, EYES)
        if self.shift is not None:
            check_shift(self.shift, self.severity)
            if SHIFTS[self.shift].of_frames and self.source != "sensor":
                raise UserError(
                    f"shift {self.shift} changes sensor frames: its source is 'sensor', not {self.source!r}"
                )
        if self.attack is not None:
            if self.attack not in ATTACKS:
                raise unknown_name("attack", self.attack, ATTACKS)
            self.threat  # noqa: B018
            make_mask(self.region)
            if self.surrogate is not None and not ATTACKS[self.attack].white_box:
                raise UserError(
                    f"attack {self.attack} asks the policy itself; only attacks with gradients are transferred"
                )
            if self.adversary is not None and (self.attack != "directed" or self.surrogate is not None):
                raise UserError(f"an adversary directs the attack directed, and no surrogate, not {self.attack}")
            if self.attack == "paint" and self.region != "frame":
                raise UserError(f"attack paint changes the table, not a region of the frame; leave out {self.region}")
            if self.shift is not None or self.eyes is not None:
                raise UserError("an attack goes with no shift and no other eyes; make each a condition of its own")
            if self.surrogate is not None and self.knowledge not in ("off", "unknown"):
                raise UserError(f"transfer cannot have {self.knowledge} jitter, which is the victim's: off or unknown")
            if self.knowledge not in ATTACKS[self.attack].knows:
                fitting = ", ".join(ATTACKS[self.attack].knows)
                raise UserError(f"attack {self.attack} cannot have {self.knowledge} jitter; it can have {fitting}")
            if self.source != "sensor":
                raise UserError(f"an attack changes sensor frames, so its source must be 'sensor', not {self.source!r}")

    @property
    def threat(self) -> Threat:
        """What the attacker may do.

        Raises:
            UserError: that is no attack on 8-bit pixels.
        """
        return Threat(self.eps, self.steps, self.knowledge, self.draws, self.restarts)

    @property
    def own_only(self) -> bool:
        """Whether it takes an environment of this suite's own."""
        return (
            self.eyes == "gaze-oracle"
            or (self.attack is not None and ATTACKS[self.attack].own_only)
            or self.adversary is not None
            or (self.shift is not None and SHIFTS[self.shift].own_only)
        )

    def described(self) -> dict[str, Any]:
        """What a run keeps of it; only one with a shift or other eyes speaks of them, as runs did before there were."""
        said = {"shift": self.shift, "severity": self.shift, "eyes": self.eyes}
        return {n: v for n, v in vars(self).items() if said.get(n, "") is not None and LATER.get(n, ...) != v}

    def make_shift(self, rng: np.random.Generator) -> Shift | None:
        return None if self.shift is None else SHIFTS[self.shift](self.severity, rng)

    def look_through(self, cameras: Mapping[str, Pyramid]) -> Mapping[str, Pyramid]:
        """The eyes of a policy under this condition.

        Raises:
            UserError: the policy cannot look through those.
        """
        return cameras if self.eyes is None else changed_eyes(cameras, self.eyes, retrained=False)

    def applies_to(self, policy: Policy) -> bool:
        """Whether there is something to change: a policy that sees, through several levels if its eyes are to be
        others, and gives gradients if the attack is white-box.

        Raises:
            UserError: the policy cannot look through the other eyes.
        """
        cameras = requirements_of(policy).cameras
        if self.eyes is not None:
            return any(pyramid.levels > 1 for pyramid in cameras.values()) and bool(self.look_through(cameras))
        if self.attack is None:
            return True
        return bool(cameras) and (self.surrogate is not None or isinstance(policy, ATTACKS[self.attack].needs))


def attack_size(described: Mapping[str, Any]) -> float:
    """Of the attack of a condition that a run keeps: 0 if it is clean, nan if something else is changed."""
    if described["attack"] is not None:
        return float(described["eps"])
    return 0.0 if described.get("shift") is None and described.get("eyes") is None else np.nan


def conditions_of(
    attacks: Sequence[str], eps: float, steps: int, shifts: Sequence[tuple[str, float]], eyes: Sequence[str] = ()
) -> list[Condition]:
    """The clean condition, then every attack, every (shift, severity) and all other eyes, from the source they need.

    Raises:
        UserError: unknown attack, shift or eyes, or a size out of range.
    """
    for name, severity in shifts:
        check_shift(name, severity)
    sensor = bool(attacks) or any(SHIFTS[name].of_frames for name, _ in shifts)
    source: Source = "sensor" if sensor else "nested"
    return [
        Condition(source=source),
        *(Condition(name, source, name, eps, steps) for name in attacks),
        *(Condition(f"{name} {size:g}", source, shift=name, severity=size) for name, size in shifts),
        *(Condition(name, source, eyes=name) for name in eyes),
    ]
