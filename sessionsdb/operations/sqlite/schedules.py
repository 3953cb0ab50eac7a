"""The next schedule of each of many namespaces on SQLite."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc
from sessionsdb.engine.statement import Statement

# One entry of the index.
FIRST = Statement("""
SELECT try_at FROM schedules INDEXED BY ix_schedules_due
WHERE namespace = :namespace ORDER BY try_at LIMIT 1
""")


def first_schedules(
    connection: Connection, namespaces: Collection[str]
) -> list[tuple[str, datetime]]:
    firsts = ((name, FIRST.row(connection, {"namespace": name})) for name in namespaces)
    return [(name, as_utc(row[0])) for name, row in firsts if row is not None]
