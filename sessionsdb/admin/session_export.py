"""Export the stored data of a session, except its transcript: its settings and its inbox."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations import registry
from sessionsdb.schema import inbox
from sessionsdb.types import SessionDetails


class ExportedSession(NamedTuple):
    session: SessionDetails
    inbox: list[dict[str, Any]]
    """The rows of the inbox by position, without ``None`` values. Times are ISO 8601."""


async def export_session(db: SessionsDB, id: str) -> ExportedSession:
    """Return the details and the inbox of a session. Raises ``UnknownSession``."""
    return await open_database_of(db).read(partial(_read, namespace=db.namespace, session_id=id))


def _read(connection: Connection, namespace: str, session_id: str) -> ExportedSession:
    details = registry.get(connection, namespace, session_id)
    rows = connection.execute(
        select(*(column for column in inbox.c if column.name not in ("namespace", "session_id")))
        .where(inbox.c.namespace == namespace, inbox.c.session_id == session_id)
        .order_by(inbox.c.position)
    )
    return ExportedSession(details, [_row(row._mapping) for row in rows])


def _row(columns: Any) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in columns.items()
        if value is not None
    }
