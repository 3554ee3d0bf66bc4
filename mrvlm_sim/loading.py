"""Objects by name: `package.module:Name` or `path/to/file.py:Name`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mrvlm_sim.errors import UserError, unknown_name


def load_object(reference: str) -> Any:
    """The object that `reference` names.

    Raises:
        UserError: the file or module cannot be imported, or has no such name (the nearest is suggested).
    """
    module_name, _, name = reference.rpartition(":")
    if not module_name or not name:
        raise UserError(f"{reference!r} must be `package.module:Name` or `path/to/file.py:Name`")
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    if not hasattr(module, name):
        raise unknown_name(f"name in {module_name}", name, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, name)


def source_file(reference: str) -> Path:
    """The file in which the object that `reference` names is looked up.

    Raises:
        UserError: the module cannot be imported.
    """
    module_name = reference.rpartition(":")[0]
    if module_name.endswith(".py"):
        return Path(module_name)
    return Path(str(_load_module(module_name).__file__))


def search_current_folder() -> None:
    """Let modules in the current folder be imported, as `python -m` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _load_module(name: str) -> ModuleType:
    search_current_folder()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no file {path}")
    name = f"mrvlm_sim_user_file.{path.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
