"""What this machine has of what the suite needs; whatever is wrong becomes a finding, never a traceback."""

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from mrvlm_sim.gl import is_software, renderer_name
from mrvlm_sim.paths import cards_in, data_folder, runs_folder

SETUP = "run `bash setup.sh`"
GL_REMEDY = (
    "install EGL (Debian, Ubuntu: `apt-get install libegl1 libgl1-mesa-dri libopengl0`) and leave MUJOCO_GL unset, "
    "or set it to a back end that this machine has"
)


@dataclass(frozen=True)
class Finding:
    """One line of the report: `note` is worth knowing, `missing` keeps the suite from working."""

    name: str
    status: Literal["ok", "note", "missing"]
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything the suite relies on, in the order in which it should be mended."""
    return [
        _python(),
        *_packages(),
        _attempt("MuJoCo", _mujoco, GL_REMEDY),
        _attempt("renderer", _renderer, GL_REMEDY),
        _attempt("torch device", _torch_device, SETUP),
        _attempt("environments", _environments, "reinstall the package: its folder `envs` is missing"),
        _attempt("policies", _policies, "reinstall the package: its folder `policies` is missing"),
        _attempt("runs", _runs, "run from a folder that you may write to"),
    ]


def _attempt(name: str, look: Callable[[], Finding], remedy: str) -> Finding:
    try:
        return look()
    except Exception as error:
        return Finding(name, "missing", f"{type(error).__name__}: {error}", remedy)


def _python() -> Finding:
    status: Literal["ok", "missing"] = "ok" if sys.version_info >= (3, 11) else "missing"
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", status, detail, "" if status == "ok" else "install Python 3.11 or newer")


def _packages() -> list[Finding]:
    try:
        requirements = [Requirement(line) for line in requires("mrvlm_sim") or []]
    except PackageNotFoundError:
        return [Finding("mrvlm_sim", "note", "runs without being installed: no versions to compare with", SETUP)]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [_package(requirement) for requirement in needed]


def _package(requirement: Requirement) -> Finding:
    supported = f"supported: {requirement.specifier or 'any'}"
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, "missing", f"not installed; {supported}", SETUP)
    if requirement.specifier.contains(installed, prereleases=True):
        return Finding(requirement.name, "ok", installed)
    return Finding(requirement.name, "note", f"{installed}; {supported}", SETUP)


def _mujoco() -> Finding:
    import mujoco

    backend = os.environ.get("MUJOCO_GL") or "chosen by MuJoCo"
    return Finding("MuJoCo", "ok", f"{mujoco.mj_versionString()}, OpenGL back end: {backend}")


def _renderer() -> Finding:
    name = renderer_name()
    if is_software(name):
        return Finding("renderer", "note", f"{name}: software rendering", "a GPU with its driver renders faster")
    return Finding("renderer", "ok", name)


def _torch_device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("torch device", "ok", f"cuda: {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        return Finding("torch device", "ok", "mps")
    return Finding("torch device", "ok", f"cpu, {torch.get_num_threads()} threads")


def _environments() -> Finding:
    names = list(cards_in("envs", "env.toml"))
    if not names:
        raise FileNotFoundError(f"no environment in {data_folder('envs')}")
    return Finding("environments", "ok", ", ".join(names))


def _policies() -> Finding:
    cards = cards_in("policies", "policy.toml")
    if not cards:
        raise FileNotFoundError(f"no policy in {data_folder('policies')}")
    untrained = [name for name, card in cards.items() if not card.with_name("model.safetensors").is_file()]
    detail = f"{len(cards) - len(untrained)} of {len(cards)} with weights"
    if not untrained:
        return Finding("policies", "ok", detail)
    return Finding("policies", "note", f"{detail}; without: {', '.join(untrained)}", "train with `mrvlm-sim train bc`")


def _runs() -> Finding:
    folder = runs_folder().absolute()
    existing = _nearest_existing(folder)
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{existing} is not writable")
    return Finding("runs", "ok", str(folder))


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
