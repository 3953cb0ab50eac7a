"""Row locks on PostgreSQL, in key order."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, text

from sessionsdb.engine.postgresql.arrays import ArrayTable
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

# The lock of a namespace is a row of its own, which no session's id can have. An advisory lock
# could be held by every role that may connect, a row only by a role that may write it. The row
# never expires.
_LOCK_WAITS = text("""
SELECT true FROM waits
WHERE namespace = :namespace AND waiter_id = '' AND wait_id = ''
FOR UPDATE
""")

_ADD_WAITS_LOCK = text("""
INSERT INTO waits (namespace, waiter_id, wait_id, target_id, target_position, until)
VALUES (:namespace, '', '', '', 0, CAST('9999-01-01' AS timestamptz))
ON CONFLICT DO NOTHING
""")


def lock_mailboxes(connection: Connection, keys: Collection[SessionKey]) -> None:
    if keys:
        connection.execute(_LOCK_MAILBOXES, _KEYS.parameters(sorted(set(keys))))


def lock_sessions(connection: Connection, keys: Collection[SessionKey]) -> None:
    if keys:
        connection.execute(_LOCK_SESSIONS, _KEYS.parameters(sorted(set(keys))))


def lock_waits(connection: Connection, namespace: str) -> None:
    key = {"namespace": namespace}
    while connection.execute(_LOCK_WAITS, key).one_or_none() is None:
        connection.execute(_ADD_WAITS_LOCK, key)
