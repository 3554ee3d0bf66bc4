"""Runs of earlier versions: what they keep of their parts, put as the present version puts it.

Schema 2: cards of policies name several environments, and which frames of the demonstrations they were trained on.
Schema 3: episodes keep what an attack did to the actions, and what it cost.
"""

import json
import sqlite3
from typing import Any

SCHEMA = 3
OLDER = (1, 2)  # that can be read, and are migrated when they are written to
ADDED = {"action_deviation": "REAL", "forwards": "INTEGER", "backwards": "INTEGER"}  # columns of episodes, 0 before


def upgraded(kind: str, description: dict[str, Any]) -> dict[str, Any]:
    """The description of a part, by a run of whatever schema that can be read, as of the present one."""
    card = description.get("identity", {}).get("card", {}) if kind == "policy" else {}
    if "environment" not in card or "training" not in card:
        return description
    changed = {name: value for name, value in card.items() if name != "environment"}
    changed |= {"environments": [card["environment"]], "training": {"stride": 2, **card["training"]}}
    return {**description, "identity": {**description["identity"], "card": changed}}


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a run's file to the present schema, as a whole or not at all."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA:
        return
    with connection:
        for kind, name, text in connection.execute("SELECT kind, name, description FROM parts").fetchall():
            description = json.dumps(upgraded(kind, json.loads(text)), sort_keys=True)
            connection.execute(
                "UPDATE parts SET description = ? WHERE kind = ? AND name = ?", (description, kind, name)
            )
        for name in missing_columns(connection):
            connection.execute(f"ALTER TABLE episodes ADD COLUMN {name} {ADDED[name]} NOT NULL DEFAULT 0")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


def missing_columns(connection: sqlite3.Connection) -> list[str]:
    """Columns of episodes that the file does not have yet."""
    there = {name for _, name, *_ in connection.execute("PRAGMA table_info(episodes)")}
    return [name for name in ADDED if name not in there]
