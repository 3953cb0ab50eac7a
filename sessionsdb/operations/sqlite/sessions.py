"""Sessions and receipts on SQLite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Insert, Row, Statement
from sessionsdb.operations.keys import SessionKey
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


_PRESENT = Statement("""
SELECT s.namespace, s.id
FROM json_each(:keys) AS k CROSS JOIN sessions AS s
    ON s.namespace = json_extract(k.value, '$[0]') AND s.id = json_extract(k.value, '$[1]')
""")

_INSERT_NEW = Insert("""
INSERT INTO sessions (namespace, id, depth, channel, peer, incarnation, version,
                      created_at, updated_at, last_active)
VALUES (:namespace, :session_id, 0, :channel, :session_id, :incarnation, :version, :now, :now, :now)
""")

_INSERT_MAILBOX = Insert("""
INSERT INTO mailboxes (namespace, session_id, epoch) VALUES (:namespace, :session_id, :epoch)
""")


def create_sessions(
    connection: Connection, sessions: Sequence[NewSession], channel: str
) -> set[SessionKey]:
    # After each statement the thread of the connection waits for Python's lock. So a batch has
    # three statements here, not two for each session. The write lock is held: no other process
    # creates a session between the look and the INSERT.
    keys = json.dumps([(one.namespace, one.session_id) for one in sessions])
    present = {tuple(row) for row in _PRESENT.rows(connection, {"keys": keys})}
    now = stored_now(connection)
    new = [one for one in sessions if (one.namespace, one.session_id) not in present]
    _INSERT_NEW.each(
        connection,
        [
            (
                *(one.namespace, one.session_id, channel, one.session_id),
                *(one.incarnation, one.version, now, now, now),
            )
            for one in new
        ],
    )
    _INSERT_MAILBOX.each(connection, [(one.namespace, one.session_id, one.epoch) for one in new])
    return {(one.namespace, one.session_id) for one in new}


def change_sessions(connection: Connection, changes: Sequence[SessionChange]) -> list[Row]:
    return [
        (number, *row)
        for number, one in enumerate(changes, 1)
        for row in change_one(connection, one)
    ]
