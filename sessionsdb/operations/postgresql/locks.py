"""Row locks on PostgreSQL, in key order."""

from __future__ import annotations

import json
from collections.abc import Collection

from sqlalchemy import Connection, text

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.postgresql.search_path import schema_of
from sessionsdb.operations.keys import SessionKey

_KEYS = ArrayTable("k", namespace="text", session_id="text")

_LOCK_MAILBOXES = text(f"""
SELECT m.namespace, m.session_id
FROM mailboxes AS m
JOIN {_KEYS} ON m.namespace = k.namespace AND m.session_id = k.session_id
ORDER BY m.namespace, m.session_id
FOR NO KEY UPDATE OF m
""")

_LOCK_SESSIONS = text(f"""
SELECT s.namespace, s.id
FROM sessions AS s
JOIN {_KEYS} ON s.namespace = k.namespace AND s.id = k.session_id
ORDER BY s.namespace, s.id
FOR NO KEY UPDATE OF s
""")

_LOCK_WAITS = text(
    "SELECT pg_catalog.pg_advisory_xact_lock(730581, pg_catalog.hashtext(CAST(:namespace AS text)))"
)


def lock_mailboxes(connection: Connection, keys: Collection[SessionKey]) -> None:
    if keys:
        connection.execute(_LOCK_MAILBOXES, _KEYS.parameters(sorted(set(keys))))


def lock_sessions(connection: Connection, keys: Collection[SessionKey]) -> None:
    if keys:
        connection.execute(_LOCK_SESSIONS, _KEYS.parameters(sorted(set(keys))))


def lock_waits(connection: Connection, namespace: str) -> None:
    # An advisory lock belongs to the whole database, and a schema is an installation of its own.
    schema = schema_of(connection)
    name = namespace if schema is None else json.dumps([schema, namespace])
    connection.execute(_LOCK_WAITS, {"namespace": name})
