"""Where the cards and results lie: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

from mrvlm_sim.errors import UserError

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent


def data_folder(name: str) -> Path:
    """The folder `envs` or `policies`, from the checkout if there is one, else from the wheel."""
    in_checkout = CHECKOUT / name
    if (CHECKOUT / "pyproject.toml").is_file() and in_checkout.is_dir():
        return in_checkout
    return PACKAGE / "_data" / name


def cards_in(folder: str, file_name: str) -> dict[str, Path]:
    """Every card of one kind, by the path of the folder that holds it, such as `pick_place` or `metaworld/reach-v3`."""
    base = data_folder(folder)
    return {path.parent.relative_to(base).as_posix(): path for path in sorted(base.glob(f"**/{file_name}"))}


def runs_folder() -> Path:
    """Where this user's runs go: `results/runs` under the current folder."""
    return Path("results") / "runs"


def make_parent(path: Path) -> None:
    """Make the folder that an output file goes to.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.rename(path)
