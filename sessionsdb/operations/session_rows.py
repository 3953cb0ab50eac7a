"""A row of ``sessions``, and the values that are made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_utc, as_utc_or_none, is_utc
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.errors import DamagedValue
from sessionsdb.messages.json_text import parse
from sessionsdb.types import ForkPoint, OpenQuestion, SessionDetails, SessionId, SessionSummary


class SessionRow(NamedTuple):
    """The columns of ``SessionDetails``, in the order in which statements select them."""

    id: str
    channel: str
    peer: str
    created_at: datetime | str
    last_active: datetime | str
    message_count: int
    parent_id: str | None
    root_id: str | None
    model: str | None
    system: str | None
    tools: str | None
    metadata: str | None
    version: int
    ended_at: datetime | str | None
    end_reason: str | None
    rewrites: int
    forked_from: str | None
    forked_seq: int | None
    withdrawn: int | None
    report: str | None


SESSION_COLUMNS = ", ".join(f"s.{name}" for name in SessionRow._fields)
"""The columns of a ``SessionRow`` in SQL, from ``sessions AS s``."""

DETAIL_COLUMNS = f"{SESSION_COLUMNS}, m.pending - m.taken, m.owner IS NOT NULL, m.question"
DETAIL_TABLES = (
    "sessions AS s JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id"
)

SELECT_DETAILS = f"""
SELECT {DETAIL_COLUMNS} FROM {DETAIL_TABLES}
"""
"""The beginning of a statement that returns a ``SessionRow``, and behind its columns how many
messages wait, whether a turn runs, and the open question."""

DETAILS = Statement(f"{SELECT_DETAILS} WHERE s.namespace = :namespace AND s.id = :id")

_CREATED_AT = SessionRow._fields.index("created_at")
_SUMMARY_WIDTH = SessionRow._fields.index("parent_id") + 1

SELECT_SUMMARY = f"""
SELECT {", ".join(f"s.{name}" for name in SessionRow._fields[:_SUMMARY_WIDTH])}
FROM sessions AS s
"""
"""The beginning of a statement that returns the rows of ``summaries``: the first columns of a
``SessionRow``."""


class SessionChange(NamedTuple):
    """New values of some columns of a session."""

    namespace: str
    session_id: str
    values: Mapping[str, str | None]
    """By the name of the column, as they are stored."""


@cache
def set_columns(names: tuple[str, ...]) -> Statement:
    """Return the statement that sets these columns of one session.

    As an expression of SQLAlchemy it takes this process five times as long.
    """
    columns = ", ".join(f"{name} = :{name}" for name in names)
    return Statement(f"UPDATE sessions SET {columns} WHERE namespace = :namespace AND id = :id")


def change_one(connection: Connection, change: SessionChange) -> list[Row]:
    """Change one session, and return its row of ``SELECT_DETAILS``, none for an unknown session."""
    key = {"namespace": change.namespace, "id": change.session_id}
    if change.values:
        set_columns(tuple(change.values)).rows(connection, {**change.values, **key})
    return list(DETAILS.rows(connection, key))


def session_details(
    row: SessionRow, *, pending: int, running: bool, held: OpenQuestion | None = None
) -> SessionDetails:
    return SessionDetails.from_fields(
        id=SessionId(row.id),
        channel=row.channel,
        peer=row.peer,
        created_at=as_utc(row.created_at),
        last_active=as_utc(row.last_active),
        message_count=row.message_count,
        parent=row.parent_id,
        root=None if row.root_id is None else SessionId(row.root_id),
        model=row.model,
        system=row.system,
        tools=None if row.tools is None else _setting(row.id, "tools", row.tools),
        metadata={} if row.metadata is None else _setting(row.id, "metadata", row.metadata),
        version=row.version,
        pending=pending,
        running=running,
        ended_at=as_utc_or_none(row.ended_at),
        end_reason=row.end_reason,
        forked_from=None
        if row.forked_from is None
        else ForkPoint.from_fields(id=SessionId(row.forked_from), seq=row.forked_seq),
        held=held,
    )


def _setting(id: str, name: str, text: str) -> Any:
    """Return a JSON value of a session. Raises ``DamagedValue``, which names the session."""
    try:
        return parse(text)
    except DamagedValue:
        raise DamagedValue(f"{name} of session {id} is no JSON") from None


def summaries(rows: Sequence[Row]) -> list[SessionSummary]:
    """Return the sessions of rows of ``SELECT_SUMMARY``."""
    # The times of a page are in one form. A page of 50 has 100 times, and those of PostgreSQL need
    # no conversion: 44 µs, not 57.
    are_utc = bool(rows) and is_utc(rows[0][_CREATED_AT])
    return SessionSummary.list_from_fields(
        {
            "id": id,
            "channel": channel,
            "peer": peer,
            "created_at": created_at if are_utc else as_utc(created_at),
            "last_active": last_active if are_utc else as_utc(last_active),
            "message_count": message_count,
            "parent": parent,
        }
        for id, channel, peer, created_at, last_active, message_count, parent in rows
    )
