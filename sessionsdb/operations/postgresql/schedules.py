"""The next schedule of each of many namespaces on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc
from sessionsdb.engine.statement import Statement

# One entry of ix_schedules_due for each namespace. With an equal sign the planner would also
# consider ix_schedules_first, and walk over the schedules of all other namespaces.
FIRST = Statement("""
SELECT n.namespace, f.try_at
FROM pg_catalog.unnest(CAST(:namespaces AS text[])) AS n(namespace)
CROSS JOIN LATERAL (
    SELECT s.namespace, s.try_at FROM schedules AS s
    WHERE s.namespace >= n.namespace
    ORDER BY s.namespace, s.try_at LIMIT 1
) AS f
WHERE f.namespace = n.namespace
""")


def first_schedules(
    connection: Connection, namespaces: Collection[str]
) -> list[tuple[str, datetime]]:
    rows = FIRST.rows(connection, {"namespaces": list(namespaces)})
    return [(namespace, as_utc(try_at)) for namespace, try_at in rows]
