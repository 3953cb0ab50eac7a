"""The time, as the database that decides by it says it.

PostgreSQL's own clock serves all its clients, so hosts need not agree. SQLite has one host: its
clock is this process's, which a test can replace through an execution option.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import cast

from sqlalchemy import Column, ColumnElement, Connection, func, literal, select

from sessionsdb.schema import UTCDateTime

CLOCK_OPTION = "sessionsdb_clock"
"""Execution option: a function that returns the time, for SQLite."""


def now(connection: Connection) -> ColumnElement[datetime]:
    """The present as an expression for a statement on this connection."""
    if connection.dialect.name == "postgresql":
        return func.clock_timestamp(type_=UTCDateTime)
    return literal(_wall_clock(connection), UTCDateTime)


def statement_time(connection: Connection) -> ColumnElement[datetime]:
    """The present, the same wherever it stands in one statement."""
    if connection.dialect.name == "postgresql":
        return func.statement_timestamp(type_=UTCDateTime)
    return now(connection)


def read_now(connection: Connection) -> datetime:
    """The present, as a value."""
    if connection.dialect.name == "postgresql":
        return connection.execute(select(now(connection))).scalar_one()
    return _wall_clock(connection)


def later(connection: Connection, seconds: float) -> ColumnElement[datetime]:
    """``seconds`` from now, as an expression for a statement on this connection."""
    if connection.dialect.name == "postgresql":
        interval = func.make_interval(0, 0, 0, 0, 0, 0, literal(seconds))
        return now(connection) + interval
    return literal(_wall_clock(connection) + timedelta(seconds=seconds), UTCDateTime)


def not_before(
    connection: Connection, column: Column[datetime], present: ColumnElement[datetime]
) -> ColumnElement[datetime]:
    """The present, unless the column is ahead of it: a clock that is set back takes no row's
    place in an order by time."""
    later = func.greatest if connection.dialect.name == "postgresql" else func.max
    return later(column, present, type_=UTCDateTime)


def sqlite_now(connection: Connection, plus: float = 0.0) -> str:
    """The present, ``plus`` seconds, as SQLite stores times."""
    return as_text(_wall_clock(connection) + timedelta(seconds=plus))


def as_text(moment: datetime) -> str:
    """A time in UTC as SQLite stores it."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


_IN_UTC = "+00:00"


def as_utc(stored: datetime | str) -> datetime:
    """A stored time, as a textual statement returns it, as an aware datetime in UTC."""
    if isinstance(stored, str):
        return datetime.fromisoformat(stored + _IN_UTC)
    return stored if stored.tzinfo is UTC else stored.astimezone(UTC)


def as_utc_or_none(stored: datetime | str | None) -> datetime | None:
    return None if stored is None else as_utc(stored)


def _wall_clock(connection: Connection) -> datetime:
    clock = connection.get_execution_options().get(CLOCK_OPTION)
    return cast(datetime, clock()) if clock is not None else datetime.now(UTC)
