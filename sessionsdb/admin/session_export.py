"""Export the stored data of a session, and the states that sessions share, as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, select

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.messages.codec import decode
from sessionsdb.operations import registry, state
from sessionsdb.operations.state import ScopeKey, session_scope
from sessionsdb.schema import (
    inbox,
    mailboxes,
    messages,
    questions,
    schedules,
    sessions,
    state_scopes,
)
from sessionsdb.types import SessionDetails

_KEY = ("namespace", "session_id", "id")
_IN_MESSAGE = ("role", "content", "payload", "write_id")

JsonRow = dict[str, Any]
"""The columns of a row without ``None`` values. Times are ISO 8601."""


class ExportedSession(NamedTuple):
    """All data of a session, at one moment."""

    messages: list[dict[str, Any]]
    session: SessionDetails
    inbox: list[JsonRow]
    """The rows of the inbox by position."""
    stored: dict[str, Any]
    """The rows that import restores: ``session``, ``mailbox``, ``messages`` (one row for each
    message, without the message itself), the ``schedules``, and the ``state`` of the session."""


async def export_session(db: SessionsDB, id: str) -> ExportedSession:
    """Return the data of a session. Raises ``UnknownSession``."""
    read = partial(_read, namespace=db.namespace, session_id=id)
    return await open_database_of(db).read_snapshot(read)


async def shared_states(db: SessionsDB) -> AsyncIterator[dict[str, Any]]:
    """Yield the states of the namespace and of its peers."""
    database = open_database_of(db)
    for key in await database.read(partial(_shared_scopes, namespace=db.namespace)):
        found = await database.read(partial(state.read, key=key))
        yield {
            "scope": key.scope,
            "channel": key.channel,
            "peer": key.peer,
            "values": found.values,
        }


def _shared_scopes(connection: Connection, namespace: str) -> list[ScopeKey]:
    rows = connection.execute(
        select(
            state_scopes.c.namespace,
            state_scopes.c.scope,
            state_scopes.c.owner,
            state_scopes.c.session_id,
            state_scopes.c.channel,
            state_scopes.c.peer,
        )
        .where(state_scopes.c.namespace == namespace, state_scopes.c.session_id.is_(None))
        .order_by(state_scopes.c.scope, state_scopes.c.owner)
    )
    return [ScopeKey(*row) for row in rows]


def _read(connection: Connection, namespace: str, session_id: str) -> ExportedSession:
    details = registry.get(connection, namespace, session_id)

    def rows(table: Table, order: str) -> list[Any]:
        owner = table.c["id" if table is sessions else "session_id"]
        found = connection.execute(
            select(table)
            .where(table.c.namespace == namespace, owner == session_id)
            .order_by(table.c[order])
        )
        return [row._mapping for row in found]

    transcript = rows(messages, "seq")
    [session] = rows(sessions, "id")
    [mailbox] = rows(mailboxes, "session_id")
    return ExportedSession(
        [decode(row["role"], row["content"], row["payload"]) for row in transcript],
        details,
        [_row(row) for row in rows(inbox, "position")],
        {
            "session": _row(session),
            "mailbox": _row(mailbox),
            "messages": [_row(row, _IN_MESSAGE) for row in transcript],
            "questions": [_row(row) for row in rows(questions, "position")],
            "schedules": [_row(row) for row in rows(schedules, "due_at")],
            "state": state.read(connection, session_scope(namespace, session_id)).values,
        },
    )


def _row(columns: Any, left_out: tuple[str, ...] = ()) -> JsonRow:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in columns.items()
        if value is not None and name not in _KEY and name not in left_out
    }
