"""Sessions and receipts on SQLite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, FromClause, func, select

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.operations.keys import MessageKey, SessionKey
from sessionsdb.operations.session_rows import SessionChange, change_one
from sessionsdb.operations.transcript_types import NewSession

_INSERT = Statement("""
INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer, model, system,
                      tools, metadata, idempotency_key, fingerprint, incarnation, version,
                      created_at, updated_at, last_active)
VALUES (:namespace, :id, :parent_id, :root_id, :depth, :channel, :peer, :model, :system,
        :tools, :metadata, :idempotency_key, :fingerprint, :incarnation, :version,
        :now, :now, :now)
ON CONFLICT (namespace, id) DO NOTHING
RETURNING id
""")


def insert_session(connection: Connection, values: dict[str, Any]) -> bool:
    return _INSERT.row(connection, values | {"now": stored_now(connection)}) is not None


_INSERT_NEW = Statement("""
INSERT INTO sessions (namespace, id, depth, channel, peer, incarnation, version,
                      created_at, updated_at, last_active)
VALUES (:namespace, :session_id, 0, :channel, :session_id, :incarnation, :version, :now, :now, :now)
ON CONFLICT (namespace, id) DO NOTHING
""")

_INSERT_MAILBOX = Statement("""
INSERT INTO mailboxes (namespace, session_id, epoch) VALUES (:namespace, :session_id, :epoch)
""")


def create_sessions(
    connection: Connection, sessions: Sequence[NewSession], channel: str
) -> set[SessionKey]:
    beside = {"channel": channel, "now": stored_now(connection)}
    created = set()
    for one in sessions:
        values = one._asdict() | beside
        if _INSERT_NEW.changes(connection, values):
            _INSERT_MAILBOX.rows(connection, values)
            created.add((one.namespace, one.session_id))
    return created


def change_sessions(connection: Connection, changes: Sequence[SessionChange]) -> list[Row]:
    return [
        (number, *row)
        for number, one in enumerate(changes, 1)
        for row in change_one(connection, one)
    ]


def receipt_table(receipts: Sequence[MessageKey]) -> FromClause:
    each = func.json_each(json.dumps(receipts)).table_valued("value")
    return select(
        func.json_extract(each.c.value, "$[0]").label("namespace"),
        func.json_extract(each.c.value, "$[1]").label("session_id"),
        func.json_extract(each.c.value, "$[2]").label("position"),
    ).subquery()
