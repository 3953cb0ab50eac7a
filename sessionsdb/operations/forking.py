"""Forks: a new session that begins with the transcript and the state of another one."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, insert, literal, select, update

from sessionsdb.engine import functions
from sessionsdb.errors import SessionExists, UnknownSession
from sessionsdb.operations import registry
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.row_locks import lock_sessions
from sessionsdb.operations.state import ScopeKey, session_scope
from sessionsdb.operations.state_changes import later
from sessionsdb.schema import messages, sessions, state_scopes, state_values
from sessionsdb.types import SessionSummary

_NOT_COPIED = ("session_id", "position", "write_id")
"""The columns of a message that a fork does not copy. A position is a place in the inbox of the
source, and a write id names a write to the source."""


class _Copied(NamedTuple):
    """The part of a transcript that a fork copies."""

    message_count: int
    last_seq: int


def fork(
    connection: Connection, namespace: str, session_id: str, new_id: str, at: int | None
) -> SessionSummary:
    """Create a fork and return it.

    The rows are copied inside the database, by one statement for each table. The source is locked,
    so that the fork has the transcript of one moment. Raises ``UnknownSession`` and
    ``SessionExists``.
    """
    lock_sessions(connection, [(namespace, session_id)])
    source = connection.execute(
        select(sessions).where(sessions.c.namespace == namespace, sessions.c.id == session_id)
    ).one_or_none()
    if source is None:
        raise UnknownSession(session_id)
    registration = Registration(
        namespace,
        new_id,
        channel=source.channel,
        peer=source.peer,
        model=source.model,
        system=source.system,
        tools=None if source.tools is None else json.loads(source.tools),
        metadata=None if source.metadata is None else json.loads(source.metadata),
    )
    if not registry.create(connection, registration):
        raise SessionExists(new_id, for_fork=True)
    copied = _copy_messages(connection, source, new_id, at)
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == namespace, sessions.c.id == new_id)
        .values(
            version=1,
            last_seq=copied.last_seq,
            message_count=copied.message_count,
            forked_from=session_id,
            forked_seq=copied.last_seq,
            # Not before the copied messages, also where the clock went back since.
            updated_at=later(sessions.c.updated_at, source.updated_at),
            last_active=later(sessions.c.last_active, source.updated_at),
        )
    )
    _copy_state(connection, session_scope(namespace, session_id), session_scope(namespace, new_id))
    return registry.get(connection, namespace, new_id).summary


def _copy_messages(
    connection: Connection, source: Row[*tuple[Any, ...]], new_id: str, at: int | None
) -> _Copied:
    """Copy the messages up to the ``seq`` ``at``, with their numbers."""
    columns = [column for column in messages.c if column.name not in _NOT_COPIED]
    chosen = [messages.c.namespace == source.namespace, messages.c.session_id == source.id]
    if at is not None:
        chosen.append(messages.c.seq <= at)
    connection.execute(
        insert(messages).from_select(
            ["session_id", *(column.name for column in columns)],
            select(literal(new_id, messages.c.session_id.type), *columns).where(*chosen),
        )
    )
    if at is None:
        return _Copied(source.message_count, source.last_seq)
    count, last_seq = connection.execute(
        select(functions.count(), functions.maximum(messages.c.seq)).where(*chosen)
    ).one()
    return _Copied(count, last_seq or 0)


def _copy_state(connection: Connection, source: ScopeKey, target: ScopeKey) -> None:
    for table, changed in (
        (state_scopes, {"owner": target.owner, "session_id": target.session_id}),
        (state_values, {"owner": target.owner}),
    ):
        copied = [
            literal(changed[column.name], column.type) if column.name in changed else column
            for column in table.c
        ]
        connection.execute(
            insert(table).from_select(
                [column.name for column in table.c],
                select(*copied).where(
                    table.c.namespace == source.namespace,
                    table.c.scope == source.scope,
                    table.c.owner == source.owner,
                ),
            )
        )
