"""The network of all arms (torch only; knows no simulator)."""

from mrvlm_sim.models.config import NetworkConfig
from mrvlm_sim.models.instruction import encode_words
from mrvlm_sim.models.network import PolicyNetwork

__all__ = ["NetworkConfig", "PolicyNetwork", "encode_words"]
