"""Attacks on the sensor frame: bounded changes, made before any cut, that a policy's wrapper then sees."""

from collections.abc import Mapping

from mrvlm_sim.metrics.attacks.base import Attack, DifferentiablePolicy, EncodingPolicy, Victim
from mrvlm_sim.metrics.attacks.directed import Directed
from mrvlm_sim.metrics.attacks.gradient import APGD, FGSM, MAD, PGD, Features, Targeted
from mrvlm_sim.metrics.attacks.paint import Paint
from mrvlm_sim.metrics.attacks.regions import make_mask
from mrvlm_sim.metrics.attacks.search import BestOfNoise, HardLabel, Noise, Square
from mrvlm_sim.metrics.attacks.threat import KNOWLEDGE, Knowledge, Threat, check_size
from mrvlm_sim.metrics.attacks.transfer import Surrogate
from mrvlm_sim.metrics.attacks.universal import Universal

ATTACKS: Mapping[str, type[Attack]] = {
    "noise": Noise,
    "best-noise": BestOfNoise,
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd": APGD,
    "mad": MAD,
    "targeted": Targeted,
    "directed": Directed,
    "features": Features,
    "square": Square,
    "hard-label": HardLabel,
    "universal": Universal,
    "paint": Paint,
}

__all__ = [
    "ATTACKS", "KNOWLEDGE", "Attack", "DifferentiablePolicy", "EncodingPolicy", "Knowledge", "Surrogate", "Threat",
    "Victim", "check_size", "make_mask",
]  # fmt: skip
