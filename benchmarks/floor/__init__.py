"""The floor: the best code by hand for the same contract, over the bare driver.

The floor writes the same rows to the same tables, with the same locks and fences, and serves many
callers with one statement. The difference to the package is the price of the package: arguments
that are checked, messages that are encoded, values that are built, retries, lost answers that are
settled, telemetry.

On SQLite the SQL is the product's own. On PostgreSQL the reads are, and the writes are shorter:
they serve one namespace, and requests without keys and senders.
"""

from __future__ import annotations

from typing import Any

from benchmarks.floor.postgresql import PostgresFloor
from benchmarks.floor.sqlite import SqliteFloor
from devtools.databases import Database


def opened_floor(database: Database) -> Any:
    """An asynchronous context manager that gives the floor of a database."""
    if database.kind == "sqlite":
        return SqliteFloor.opened(str(database.path))
    return PostgresFloor.opened(database.url)
