"""Row locks on PostgreSQL, in key order."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.keys import SessionKey

_KEYS = ArrayTable("k", namespace="text", session_id="text")

_LOCK_MAILBOXES = Statement(f"""
SELECT m.namespace, m.session_id
FROM mailboxes AS m
JOIN {_KEYS} ON m.namespace = k.namespace AND m.session_id = k.session_id
ORDER BY m.namespace, m.session_id
FOR NO KEY UPDATE OF m
""")

_LOCK_SESSIONS = Statement(f"""
SELECT s.namespace, s.id
FROM sessions AS s
JOIN {_KEYS} ON s.namespace = k.namespace AND s.id = k.session_id
ORDER BY s.namespace, s.id
FOR NO KEY UPDATE OF s
""")

# The lock of a namespace is a row of its own, which no session's id can have. An advisory lock
# could be held by every role that may connect, a row only by a role that may write it. The row
# never expires.
_LOCK_WAITS = Statement("""
SELECT true FROM waits
WHERE namespace = :namespace AND waiter_id = '' AND wait_id = ''
FOR UPDATE
""")

_ADD_WAITS_LOCK = Statement("""
INSERT INTO waits (namespace, waiter_id, wait_id, target_id, target_position, until)
VALUES (:namespace, '', '', '', 0, CAST('9999-01-01' AS timestamptz))
ON CONFLICT DO NOTHING
""")


def lock_mailboxes(connection: Connection, keys: Collection[SessionKey]) -> None:
    if keys:
        _LOCK_MAILBOXES.rows(connection, _KEYS.parameters(sorted(set(keys))))


def lock_sessions(connection: Connection, keys: Collection[SessionKey]) -> None:
    if keys:
        _LOCK_SESSIONS.rows(connection, _KEYS.parameters(sorted(set(keys))))


def lock_waits(connection: Connection, namespace: str) -> None:
    key = {"namespace": namespace}
    while _LOCK_WAITS.row(connection, key) is None:
        _ADD_WAITS_LOCK.rows(connection, key)
