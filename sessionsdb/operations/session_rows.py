"""A row of ``sessions``, and the values that are made from it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row

from sessionsdb.engine.clock import as_utc, as_utc_or_none
from sessionsdb.schema import sessions
from sessionsdb.types import ForkPoint, OpenQuestion, SessionDetails, SessionId


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

DETAILS = tuple(sessions.c[name] for name in SessionRow._fields)
"""The columns of a ``SessionRow`` for SQLAlchemy."""

SUMMARY = (
    sessions.c.id,
    sessions.c.channel,
    sessions.c.peer,
    sessions.c.created_at,
    sessions.c.last_active,
    sessions.c.message_count,
    sessions.c.parent_id,
)
"""The columns that ``summary_fields`` needs."""


def session_details(
    row: SessionRow, *, pending: int, running: bool, held: OpenQuestion | None = None
) -> SessionDetails:
    return SessionDetails.from_fields(
        **summary_fields(row),
        root=None if row.root_id is None else SessionId(row.root_id),
        model=row.model,
        system=row.system,
        tools=None if row.tools is None else json.loads(row.tools),
        metadata={} if row.metadata is None else json.loads(row.metadata),
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


def summary_fields(row: Row[*tuple[Any, ...]] | SessionRow) -> dict[str, Any]:
    """Return the fields of a ``SessionSummary``."""
    return {
        "id": SessionId(row.id),
        "channel": row.channel,
        "peer": row.peer,
        "created_at": as_utc(row.created_at),
        "last_active": as_utc(row.last_active),
        "message_count": row.message_count,
        "parent": None if row.parent_id is None else SessionId(row.parent_id),
    }
