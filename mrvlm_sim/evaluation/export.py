"""The episodes of a run as one file for other tools."""

from pathlib import Path

from mrvlm_sim.errors import UserError, unknown_name
from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.paths import make_parent

SUFFIXES = (".csv", ".parquet")


def export_run(folder: Path, path: Path) -> int:
    """Write every finished episode, one row each, as the suffix of `path` says; returns how many there are.

    In Parquet, latencies are lists of numbers; in CSV they are numbers with spaces between them.

    Raises:
        UserError: there is no run in `folder`, the suffix is unknown, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise unknown_name("kind of file", path.suffix or path.name, SUFFIXES)
    rows = read_episodes(folder)
    make_parent(path)
    partial = path.with_name(path.name + ".partial")
    try:
        if path.suffix == ".csv":
            rows.to_csv(partial, index=False)
        else:
            rows["latency_ms"] = [[float(value) for value in text.split()] for text in rows["latency_ms"]]
            rows.to_parquet(partial, index=False)
        partial.rename(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
    return len(rows)
