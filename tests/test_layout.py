"""The house rules that a machine can check: imports go down only, files and functions stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "mrvlm_sim"
ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LAYERS = (
    {"cli", "__main__"},
    {"commands"},
    {"console", "doctor"},
    {"evaluation"},
    {"training"},
    {"agents"},
    {"metrics"},
    {"wrappers"},
    {"tasks"},
    {"sim"},
    {"models"},
    {"vision"},
    {"", "cards", "errors", "gl", "loading", "paths", "registration", "seeding"},  # "" is the package itself
)
LONGEST_FILE = 400
LONGEST_FUNCTION = 80


def part(module: str) -> str:
    """The part of the house that a module belongs to: `vision` for `mrvlm_sim.vision.tokens`."""
    return [*module.split("."), ""][1]


def part_of_file(path: Path) -> str:
    relative = path.relative_to(ROOT / PACKAGE).with_suffix("")
    return "" if relative.name == "__init__" and len(relative.parts) == 1 else relative.parts[0]


def layer(name: str) -> int:
    found = [level for level, names in enumerate(LAYERS) if name in names]
    assert found, f"{PACKAGE}.{name} has no place in the house yet: add it to LAYERS"
    return found[0]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, inside functions too; all imports are absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == PACKAGE:
                yield from ((node.lineno, f"{PACKAGE}.{alias.name}") for alias in node.names if alias.name[0] != "_")
            else:
                yield node.lineno, node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    here = layer(part_of_file(path))
    own = [(line, name) for line, name in imported_modules(path) if name.split(".")[0] == PACKAGE]
    upward = [f"line {line}: {name}" for line, name in own if layer(part(name)) < here]
    assert not upward, f"{path} imports from above itself: {upward}"


@pytest.mark.parametrize("name", ["models", "vision"])
def test_networks_and_vision_know_no_simulator(name: str) -> None:
    paths = [path for path in FILES if part_of_file(path) == name]
    assert paths
    packages = {module.split(".")[0] for path in paths for _, module in imported_modules(path)}
    assert not packages & {"mujoco", "gymnasium"}


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
