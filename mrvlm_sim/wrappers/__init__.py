"""Gymnasium wrappers."""

from mrvlm_sim.wrappers.tokens import MultiResolutionTokens

__all__ = ["MultiResolutionTokens"]
