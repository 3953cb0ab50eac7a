"""The time on SQLite: the clock of this process, since SQLite has one host.

A test replaces the clock through an execution option of the connection.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import cast

from sqlalchemy import ColumnElement, Connection, literal

from sessionsdb.schema import UTCDateTime

CLOCK_OPTION = "sessionsdb_clock"
"""The execution option that holds the clock: a function that returns the time."""

PRESENT = ":present"


def now(connection: Connection) -> ColumnElement[datetime]:
    return literal(read_now(connection), UTCDateTime)


def later(connection: Connection, seconds: float) -> ColumnElement[datetime]:
    return literal(read_now(connection) + timedelta(seconds=seconds), UTCDateTime)


def read_now(connection: Connection) -> datetime:
    clock = connection.get_execution_options().get(CLOCK_OPTION)
    return cast(datetime, clock()) if clock is not None else datetime.now(UTC)


def stored_now(connection: Connection, plus: float = 0.0) -> str:
    """Return the present, ``plus`` seconds, as SQLite stores times."""
    return as_stored(read_now(connection) + timedelta(seconds=plus))


def present_values(connection: Connection) -> dict[str, str]:
    return {"present": stored_now(connection)}


def as_stored(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
