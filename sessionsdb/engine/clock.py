"""The time, by the clock that the database decides by.

Each database has a clock of its own: see ``engine/sqlite/clock.py`` and
``engine/postgresql/clock.py``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy import ColumnElement, Connection

from sessionsdb.engine.dialect import Kind, kind_of
from sessionsdb.engine.postgresql import clock as postgresql
from sessionsdb.engine.sqlite import clock as sqlite


class _Clock(Protocol):
    """The functions that each database has."""

    PRESENT: str

    def now(self, connection: Connection, /) -> ColumnElement[datetime]: ...

    def later(self, connection: Connection, /, seconds: float) -> ColumnElement[datetime]: ...

    def read_now(self, connection: Connection, /) -> datetime: ...

    def present_values(self, connection: Connection, /) -> dict[str, str]: ...

    def as_stored(self, moment: datetime, /) -> datetime | str: ...


_CLOCKS: dict[Kind, _Clock] = {"sqlite": sqlite, "postgresql": postgresql}


def now(connection: Connection) -> ColumnElement[datetime]:
    """Return the present as an expression for a statement on this connection."""
    return _CLOCKS[kind_of(connection)].now(connection)


def later(connection: Connection, seconds: float) -> ColumnElement[datetime]:
    """Return the moment ``seconds`` from now, as an expression for an INSERT."""
    return _CLOCKS[kind_of(connection)].later(connection, seconds)


def read_now(connection: Connection) -> datetime:
    """Return the present as a value: an aware datetime in UTC."""
    return _CLOCKS[kind_of(connection)].read_now(connection)


def present_sql(connection: Connection) -> str:
    """Return the present as an expression for a ``Statement``, always the same for a database.

    Its parameters get their values from ``present_values``.
    """
    return _CLOCKS[kind_of(connection)].PRESENT


def present_values(connection: Connection) -> dict[str, str]:
    """Return the values of the parameters of ``present_sql``."""
    return _CLOCKS[kind_of(connection)].present_values(connection)


def as_stored(connection: Connection, moment: datetime) -> datetime | str:
    """Return a moment in the form that the driver takes in a ``Statement``."""
    return _CLOCKS[kind_of(connection)].as_stored(moment)


_IN_UTC = "+00:00"
_from_iso = datetime.fromisoformat
"""Looked up once: a page of 50 sessions has 100 times, and each takes 0.13 µs instead of 0.18."""


def is_utc(stored: datetime | str) -> bool:
    """Return whether ``as_utc`` would return the time as it is."""
    return not isinstance(stored, str) and stored.tzinfo is UTC


def as_utc(stored: datetime | str) -> datetime:
    """Return a time that a ``Statement`` has read, as an aware datetime in UTC."""
    if isinstance(stored, str):
        return _from_iso(stored + _IN_UTC)
    if stored.tzinfo is None:  # asyncpg gives the two infinite times without a zone
        return stored.replace(tzinfo=UTC)
    return stored if stored.tzinfo is UTC else stored.astimezone(UTC)


def as_utc_or_none(stored: datetime | str | None) -> datetime | None:
    return None if stored is None else as_utc(stored)
