"""Forks: a new session that begins with the transcript and the state of another one."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection, Table

from sessionsdb.engine.statement import Statement
from sessionsdb.errors import SessionExists, UnknownSession
from sessionsdb.messages.json_text import parse
from sessionsdb.operations import log_references, registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.state import ScopeKey, session_scope
from sessionsdb.schema import messages, state_scopes, state_values
from sessionsdb.types import SessionSummary


class _Source(NamedTuple):
    """The columns of a session that its fork needs."""

    channel: str
    peer: str
    model: str | None
    system: str | None
    tools: str | None
    metadata: str | None
    message_count: int
    last_seq: int
    updated_at: datetime | str


class _Copied(NamedTuple):
    """The part of a transcript that a fork copies."""

    message_count: int
    last_seq: int


_SELECT_SOURCE = f"""
SELECT {", ".join(_Source._fields)} FROM sessions WHERE namespace = :namespace AND id = :id
"""

_READ_SOURCE = Statement(_SELECT_SOURCE)

# Locked and read by one statement: a session that is created between two would be read unlocked.
_LOCK_SOURCE = Statement(f"{_SELECT_SOURCE} FOR NO KEY UPDATE")

# The times are not before those of the copied messages, also where the clock went back since.
_SET_FORK = Statement("""
UPDATE sessions
SET version = 1, last_seq = :last_seq, message_count = :message_count, forked_from = :source,
    forked_seq = :last_seq,
    updated_at = CASE WHEN updated_at > :updated_at THEN updated_at ELSE :updated_at END,
    last_active = CASE WHEN last_active > :updated_at THEN last_active ELSE :updated_at END
WHERE namespace = :namespace AND id = :id
""")


def fork(
    connection: Connection, namespace: str, session_id: str, new_id: str, at: int | None
) -> SessionSummary:
    """Create a fork and return it.

    The rows are copied inside the database, by one statement for each table. The source is locked,
    so that the fork has the transcript of one moment. Raises ``UnknownSession`` and
    ``SessionExists``.
    """
    lock = _LOCK_SOURCE if dialect_of(connection).has_row_locks else _READ_SOURCE
    row = lock.row(connection, {"namespace": namespace, "id": session_id})
    if row is None:
        raise UnknownSession(session_id)
    source = _Source(*row)
    registration = Registration(
        namespace,
        new_id,
        channel=source.channel,
        peer=source.peer,
        model=source.model,
        system=source.system,
        tools=None if source.tools is None else parse(source.tools),
        metadata=None if source.metadata is None else parse(source.metadata),
    )
    if not registry.create(connection, registration):
        raise SessionExists(new_id, for_fork=True)
    copied = _copy_messages(connection, namespace, session_id, new_id, at)
    if copied is None:
        copied = _Copied(source.message_count, source.last_seq)
    _SET_FORK.rows(
        connection,
        {
            "namespace": namespace,
            "id": new_id,
            "source": session_id,
            "updated_at": source.updated_at,
            **copied._asdict(),
        },
    )
    _copy_state(connection, session_scope(namespace, session_id), session_scope(namespace, new_id))
    log_references.copy_references(connection, namespace, session_id, new_id)
    return registry.get(connection, namespace, new_id).summary


# A position is a place in the inbox of the source, and a write id names a write to the source.
_COPIED_COLUMNS = ", ".join(
    column.name
    for column in messages.c
    if column.name not in ("session_id", "position", "write_id")
)


@cache
def _copy_and_count(*, is_part: bool) -> tuple[Statement, Statement]:
    chosen = "namespace = :namespace AND session_id = :session_id"
    if is_part:
        chosen += " AND seq <= :at"
    return (
        Statement(f"""
INSERT INTO messages (session_id, {_COPIED_COLUMNS})
SELECT CAST(:new_id AS text), {_COPIED_COLUMNS} FROM messages WHERE {chosen}
"""),
        Statement(f"SELECT pg_catalog.count(*), pg_catalog.max(seq) FROM messages WHERE {chosen}"),
    )


def _copy_messages(
    connection: Connection, namespace: str, session_id: str, new_id: str, at: int | None
) -> _Copied | None:
    """Copy the messages up to the ``seq`` ``at``, with their numbers.

    Return ``None`` if ``at`` is ``None``: then all are copied.
    """
    copy, count = _copy_and_count(is_part=at is not None)
    values = {"namespace": namespace, "session_id": session_id, "new_id": new_id, "at": at}
    copy.rows(connection, values)
    if at is None:
        return None
    [[number, last_seq]] = count.rows(connection, values)
    return _Copied(number, last_seq or 0)


def _copy_scope(table: Table) -> Statement:
    """Return the statement that copies the rows of a session's state."""
    values = {"owner": "CAST(:new_owner AS text)", "session_id": "CAST(:new_session AS text)"}
    names = [column.name for column in table.c]
    return Statement(f"""
INSERT INTO {table.name} ({", ".join(names)})
SELECT {", ".join(values.get(name, name) for name in names)} FROM {table.name}
WHERE namespace = :namespace AND scope = :scope AND owner = :owner
""")


_COPY_STATE = [_copy_scope(table) for table in (state_scopes, state_values)]


def _copy_state(connection: Connection, source: ScopeKey, target: ScopeKey) -> None:
    values = {
        "namespace": source.namespace,
        "scope": source.scope,
        "owner": source.owner,
        "new_owner": target.owner,
        "new_session": target.session_id,
    }
    for statement in _COPY_STATE:
        statement.rows(connection, values)
