"""All episodes of a run in one SQLite file: a row is there whole or not at all, whatever happens to the process.

SQLite (write-ahead log) rather than DuckDB: rows come one at a time, each is a transaction of its own, and a notebook
may read while the run goes on; DuckDB locks readers out and is made for bulk.
"""

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from mrvlm_sim.cards import differences
from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.migrate import OLDER, SCHEMA, migrate, missing_columns, upgraded
from mrvlm_sim.evaluation.published import is_published, published, published_episodes

FILE, PARTIAL, LOCK = "run.sqlite", "run.partial", ".lock"
SQL_TYPES = {str: "TEXT", int: "INTEGER", bool: "INTEGER", float: "REAL", bytes: "BLOB", list[float]: "TEXT"}
BLOBS = ("initial_state", "actions")  # compressed
KINDS = ("environment", "condition", "policy")  # of which a run is made


class Key(NamedTuple):
    """What names an episode within a run."""

    policy: str
    condition: str
    suite_seed: int
    episode: int


IS_KEY = " AND ".join(f"{name} = ?" for name in Key._fields)


class RunStore:
    """The one writer of a run's file; opening it a second time is refused until the first is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK, timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another process is writing to {folder}; wait for it or choose another --output"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write results to {folder}: {error.strerror}; choose another --output") from error
        try:
            if not (folder / FILE).exists():
                names = {path.name for path in folder.iterdir()} - {LOCK}
                if strangers := {name for name in names if not name.startswith(PARTIAL)}:
                    rule = f"{folder} exists already and holds no run, but {min(strangers)}"
                    raise UserError(f"{rule}; choose another --output")
                _create(folder)
            self._connection = _connect(folder / FILE)
            migrate(self._connection)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the write-ahead log into the file and let others write."""
        self._connection.close()
        self._lock.release()

    def agree(self, kind: str, name: str, description: Mapping[str, Any]) -> None:
        """Keep what `name` is in this run; if it is known already, it must be the same.

        Raises:
            UserError: it was something else when the run began; the first difference is named.
        """
        with self._connection:
            self._agree(kind, name, description)

    def _agree(self, kind: str, name: str, description: Mapping[str, Any]) -> None:
        known = dict(self._connection.execute("SELECT name, description FROM parts WHERE kind = ?", (kind,)))
        text = json.dumps(description, sort_keys=True)
        if kind == "environment" and (others := known.keys() - {name}):
            raise UserError(f"{self.folder} is a run of {min(others)}, not of {name}; choose another --output")
        if name not in known:
            self._connection.execute("INSERT INTO parts VALUES (?, ?, ?)", (kind, name, text))
        elif known[name] != text:
            place, was, now = next(differences(json.loads(known[name]), json.loads(text)))
            rule = f"{self.folder} was begun with another {kind} {name!r}: {place} was {was!r}, it is {now!r}"
            raise UserError(f"{rule}; choose another --output, or restore what it was")

    def note_session(self, provenance: Mapping[str, Any]) -> None:
        """Add what this process is and depends on: a run may be carried out by several, one after the other."""
        with self._connection:
            self._connection.execute("INSERT INTO sessions VALUES (?)", (json.dumps(provenance),))

    def plan(self, keys: Iterable[Key]) -> None:
        """Add episodes that the run is to have; those planned before stay."""
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO planned VALUES (?, ?, ?, ?)", keys)

    def finished(self) -> set[Key]:
        return set(map(Key._make, self._connection.execute(f"SELECT {', '.join(Key._fields)} FROM episodes")))

    def add(self, record: EpisodeRecord) -> None:
        """Write one finished episode.

        Raises:
            sqlite3.IntegrityError: it is there already.
        """
        row = record.row()
        row |= {name: zlib.compress(row[name]) for name in BLOBS}
        with self._connection:
            self._connection.execute(f"INSERT INTO episodes VALUES ({', '.join('?' * len(row))})", [*row.values()])

    def absorb(self, folders: Iterable[Path]) -> None:
        """Take over everything that other runs hold; all of it, or nothing.

        Raises:
            UserError: two runs differ in what they are made of, or in an episode that both have.
        """
        with self._connection:
            for folder in folders:
                self._absorb(folder)

    def _absorb(self, folder: Path) -> None:
        for kind in KINDS:
            for name, description in read_parts(folder, kind).items():
                self._agree(kind, name, description)
        own, ours, columns = self._connection, self.finished(), [field.name for field in fields(EpisodeRecord)]
        outcome = [column for column in columns if column not in ("latency_ms", *BLOBS)]
        with reading(folder) as other:
            for row in other.execute(f"SELECT {_selected(other, columns)} FROM episodes"):
                key = Key(*(row[columns.index(name)] for name in Key._fields))
                if key not in ours:
                    own.execute(f"INSERT INTO episodes VALUES ({', '.join('?' * len(row))})", row)
                elif _episode(own, key, ", ".join(outcome)) != _episode(other, key, _selected(other, outcome)):
                    raise UserError(f"{folder} and {self.folder} have different outcomes of {key}; nothing was merged")
            own.executemany("INSERT OR IGNORE INTO planned VALUES (?, ?, ?, ?)", other.execute("SELECT * FROM planned"))
            for session in other.execute("SELECT provenance FROM sessions"):
                known = "SELECT 1 FROM sessions WHERE provenance = ?"
                own.execute(f"INSERT INTO sessions SELECT ? WHERE NOT EXISTS ({known})", session * 2)

    def unplan(self, keys: Iterable[Key]) -> None:
        """Take those of these episodes from the plan that have not been run."""
        finished = self.finished()
        with self._connection:
            self._connection.executemany(f"DELETE FROM planned WHERE {IS_KEY}", set(keys) - finished)

    def forget_errors(self, keys: Iterable[Key]) -> int:
        """Delete those of these episodes that ended in an error, so that they are run again; how many there were."""
        with self._connection:
            return self._connection.executemany(f"DELETE FROM episodes WHERE error != '' AND {IS_KEY}", keys).rowcount


def read_episodes(folder: Path) -> pd.DataFrame:
    """The episodes of a run in the order of its plan, one row each, as `EpisodeRecord` names them (latencies as text).

    Raises:
        UserError: there is no run in that folder, or one of another version.
    """
    columns = {field.name: field.type for field in fields(EpisodeRecord) if field.name not in BLOBS}
    if _only_published(folder):
        return published_episodes(folder, columns)  # type: ignore[arg-type]
    with reading(folder) as connection:
        chosen = _selected(connection, columns)
        rows = connection.execute(f"SELECT {chosen} FROM planned NATURAL JOIN episodes ORDER BY planned.rowid")
        frame = pd.DataFrame(rows.fetchall(), columns=list(columns))
    return frame.astype({name: kind for name, kind in columns.items() if kind is bool})


def planned_keys(folder: Path) -> list[Key]:
    """Every episode that the run is to have, in order."""
    if _only_published(folder):
        names = read_episodes(folder)[list(Key._fields)]
        return [Key(*values) for values in names.itertuples(index=False, name=None)]
    with reading(folder) as connection:
        return list(map(Key._make, connection.execute(f"SELECT {', '.join(Key._fields)} FROM planned ORDER BY rowid")))


def read_log(folder: Path, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Initial simulator state float64 (n,) and actions float32 (steps * action size,) of one episode.

    Raises:
        UserError: the run has no such episode.
    """
    with reading(folder) as connection:
        row = _episode(connection, key, ", ".join(BLOBS))
    if row is None:
        raise UserError(f"{folder} has no finished episode {key.episode} of {key.policy} under {key.condition}")
    state, actions = map(zlib.decompress, row)
    return np.frombuffer(state, np.float64), np.frombuffer(actions, np.float32)


def read_parts(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """What `agree` kept of one kind, by name."""
    if _only_published(folder):
        return {name: upgraded(kind, description) for name, description in published(folder, kind).items()}
    with reading(folder) as connection:
        rows = connection.execute("SELECT name, description FROM parts WHERE kind = ?", (kind,)).fetchall()
    return {name: upgraded(kind, json.loads(text)) for name, text in rows}


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """What every process that worked on the run said of itself, first one first."""
    if _only_published(folder):
        return list(published(folder, "sessions"))
    with reading(folder) as connection:
        return [json.loads(text) for (text,) in connection.execute("SELECT provenance FROM sessions ORDER BY rowid")]


def _only_published(folder: Path) -> bool:
    return not (folder / FILE).is_file() and is_published(folder)


def _selected(connection: sqlite3.Connection, columns: Iterable[str]) -> str:
    """Columns of episodes, 0 for those that came after the file was made."""
    missing = missing_columns(connection)
    return ", ".join(f"0 AS {column}" if column in missing else f"episodes.{column}" for column in columns)


def _episode(connection: sqlite3.Connection, key: Key, columns: str) -> tuple | None:
    return connection.execute(f"SELECT {columns} FROM episodes WHERE {IS_KEY}", key).fetchone()


def check_run(folder: Path) -> None:
    """
    Raises:
        UserError: there is no run in that folder, with initial states and actions.
    """
    with reading(folder):
        pass


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection to an existing run; also while another process writes.

    Raises:
        UserError: there is no run in that folder, it is damaged, or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        only_published = "; what is published of a run has neither initial states nor actions: run its command again"
        raise UserError(f"no run in {folder}: {path} is missing{only_published if is_published(folder) else ''}")
    writable = os.access(folder, os.W_OK) and os.access(path, os.W_OK)
    with closing(_connect(path, "mode=rw" if writable else "mode=ro&immutable=1")) as connection:
        yield connection


def _connect(path: Path, mode: str = "mode=rw") -> sqlite3.Connection:
    connection = None
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (SCHEMA, *OLDER):
            connection.close()
            raise UserError(
                f"{path} has schema version {found}, this version of mrvlm_sim reads {SCHEMA}; "
                f"read it with the version that wrote it, or choose another --output"
            )
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        raise UserError(f"{path} is not a run, or damaged ({error}); choose another --output") from error
    return connection


def _create(folder: Path) -> None:
    """Make an empty run; the file appears complete."""
    partial = folder / PARTIAL
    for left in folder.glob(PARTIAL + "*"):
        left.unlink()
    key = "policy TEXT, condition TEXT, suite_seed INTEGER, episode INTEGER"
    columns = ", ".join(f"{field.name} {SQL_TYPES[field.type]} NOT NULL" for field in fields(EpisodeRecord))  # type: ignore[index]
    with closing(sqlite3.connect(partial)) as connection:
        connection.executescript(f"""
            CREATE TABLE parts (kind TEXT, name TEXT, description TEXT NOT NULL, PRIMARY KEY (kind, name));
            CREATE TABLE sessions (provenance TEXT NOT NULL);
            CREATE TABLE planned ({key}, PRIMARY KEY ({", ".join(Key._fields)}));
            CREATE TABLE episodes ({columns}, PRIMARY KEY ({", ".join(Key._fields)}));
            PRAGMA user_version = {SCHEMA};
            PRAGMA journal_mode = WAL;
        """)
    partial.rename(folder / FILE)
