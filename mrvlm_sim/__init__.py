"""Evaluation suite for robot policies that see through jittered multi-resolution vision.

Importing the package chooses an OpenGL back end for MuJoCo and makes `gymnasium.make("mrvlm_sim/PickPlace-v0")`
work; neither MuJoCo nor torch is loaded before it is used.
"""

from importlib.metadata import PackageNotFoundError, version

from mrvlm_sim.gl import choose_backend
from mrvlm_sim.registration import register_environments

__all__ = ["__version__"]

try:
    __version__ = version("mrvlm_sim")
except PackageNotFoundError:  # run from a folder that was not installed
    __version__ = "0+unknown"

choose_backend()
register_environments()
