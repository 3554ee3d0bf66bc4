"""Runs of earlier versions: what they keep of their parts, put as the present version puts it.

Schema 2: cards of policies name several environments, and which frames of the demonstrations they were trained on.
"""

import json
import sqlite3
from typing import Any

SCHEMA = 2
OLDER = (1,)  # that can be read, and are migrated when they are written to


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
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
