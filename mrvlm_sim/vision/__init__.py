"""Pyramids, jitter and tokens: pure geometry on frames; knows no simulator."""

from mrvlm_sim.vision.jitter import Jitter, JitterProcess
from mrvlm_sim.vision.pyramid import Pyramid
from mrvlm_sim.vision.tokens import cut, cut_batch, patchify, quantise, shown_in, tokenise, unpatchify

__all__ = [
    "Jitter",
    "JitterProcess",
    "Pyramid",
    "cut",
    "cut_batch",
    "patchify",
    "quantise",
    "shown_in",
    "tokenise",
    "unpatchify",
]
