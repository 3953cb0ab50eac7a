"""Sessions and receipts on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.session_rows import (
    DETAIL_COLUMNS,
    DETAIL_TABLES,
    SessionChange,
    change_one,
)
from sessionsdb.operations.transcript_types import NewSession

_INSERT = Statement("""
INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer, model, system,
                      tools, metadata, idempotency_key, fingerprint, incarnation, version,
                      created_at, updated_at, last_active)
VALUES (:namespace, :id, :parent_id, :root_id, :depth, :channel, :peer, :model, :system,
        :tools, :metadata, :idempotency_key, :fingerprint, :incarnation, :version,
        pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp(),
        pg_catalog.statement_timestamp())
ON CONFLICT (namespace, id) DO NOTHING
RETURNING id
""")


def insert_session(connection: Connection, values: dict[str, Any]) -> bool:
    return _INSERT.row(connection, values) is not None


# The rows are inserted in the order of the arrays.
_NEW = ArrayTable("n", namespace="text", id="text", version="bigint", incarnation="text")
_INSERT_ALL = Statement(f"""
INSERT INTO sessions (namespace, id, depth, channel, peer, incarnation, version,
                      created_at, updated_at, last_active)
SELECT n.namespace, n.id, 0, CAST(:channel AS text), n.id, n.incarnation, n.version,
       pg_catalog.statement_timestamp(), pg_catalog.statement_timestamp(),
       pg_catalog.statement_timestamp()
FROM {_NEW}
ON CONFLICT (namespace, id) DO NOTHING
RETURNING namespace, id
""")

_MAILBOXES = ArrayTable("n", namespace="text", id="text", epoch="bigint")
_INSERT_MAILBOXES = Statement(f"""
INSERT INTO mailboxes (namespace, session_id, epoch)
SELECT n.namespace, n.id, n.epoch FROM {_MAILBOXES}
""")


def create_sessions(
    connection: Connection, sessions: Sequence[NewSession], channel: str
) -> set[SessionKey]:
    rows = _INSERT_ALL.rows(
        connection, {**_NEW.parameters([one[:4] for one in sessions]), "channel": channel}
    )
    created = {(namespace, id) for namespace, id in rows}
    mailboxes = [(*one[:2], one.epoch) for one in sessions if one[:2] in created]
    if mailboxes:
        _INSERT_MAILBOXES.rows(connection, _MAILBOXES.parameters(mailboxes))
    return created


_SESSIONS = ArrayTable("k", namespace="text", id="text", ordinality="number")

_READ_DETAILS = Statement(f"""
SELECT k.number, {DETAIL_COLUMNS}
FROM {DETAIL_TABLES} JOIN {_SESSIONS} ON k.namespace = s.namespace AND k.id = s.id
""")


@cache
def _change(names: tuple[str, ...]) -> tuple[ArrayTable, Statement]:
    """Return the statement that sets these columns of many sessions, locked in key order."""
    table = ArrayTable("r", namespace="text", id="text", **dict.fromkeys(names, "text"))
    changed = ", ".join(f"{name} = l.{name}" for name in names)
    statement = Statement(f"""
WITH locked AS MATERIALIZED (
    SELECT * FROM (
        SELECT s.namespace, s.id, {", ".join(f"r.{name}" for name in names)}
        FROM {table} JOIN sessions AS s ON s.namespace = r.namespace AND s.id = r.id
        ORDER BY s.namespace, s.id
        FOR NO KEY UPDATE OF s
    ) AS l
)
UPDATE sessions AS s SET {changed} FROM locked AS l
WHERE s.namespace = l.namespace AND s.id = l.id
""")
    return table, statement


def change_sessions(connection: Connection, changes: Sequence[SessionChange]) -> Sequence[Row]:
    if len(changes) == 1:  # without arrays
        return [(1, *row) for row in change_one(connection, changes[0])]
    names = tuple(changes[0].values)
    if names:
        table, statement = _change(names)
        statement.rows(
            connection, table.parameters([(*one[:2], *one.values.values()) for one in changes])
        )
    return _READ_DETAILS.rows(connection, _SESSIONS.parameters([one[:2] for one in changes]))
