"""Row locks, always in the same order, so that no two transactions can wait for each other.

All mailboxes of an operation come first, in key order, then all its sessions, in key order. On
SQLite every writing transaction begins as the only one, and nothing is left to lock.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, TextClause, text

SessionKey = tuple[str, str]
"""``(namespace, session id)``"""

_LOCK_MAILBOXES = text("""
    SELECT m.namespace, m.session_id
    FROM mailboxes AS m
    JOIN unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[])) AS k(namespace, session_id)
        ON m.namespace = k.namespace AND m.session_id = k.session_id
    ORDER BY m.namespace, m.session_id
    FOR NO KEY UPDATE OF m
""")

_LOCK_SESSIONS = text("""
    SELECT s.namespace, s.id
    FROM sessions AS s
    JOIN unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[])) AS k(namespace, id)
        ON s.namespace = k.namespace AND s.id = k.id
    ORDER BY s.namespace, s.id
    FOR NO KEY UPDATE OF s
""")


def lock_mailboxes(connection: Connection, keys: Collection[SessionKey]) -> None:
    """Hold these mailboxes until the transaction ends; unknown ones are passed over."""
    _lock(connection, _LOCK_MAILBOXES, keys)


def lock_sessions(connection: Connection, keys: Collection[SessionKey]) -> None:
    """Hold these sessions until the transaction ends; their mailboxes must be held already if
    the transaction touches any mailbox."""
    _lock(connection, _LOCK_SESSIONS, keys)


def _lock(connection: Connection, statement: TextClause, keys: Collection[SessionKey]) -> None:
    if connection.dialect.name != "postgresql" or not keys:
        return
    distinct = sorted(set(keys))
    connection.execute(
        statement,
        {"namespaces": [k[0] for k in distinct], "ids": [k[1] for k in distinct]},
    )
