"""The time on PostgreSQL: the clock of the server, so that the hosts of clients need not agree."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, literal, select

from sessionsdb.schema import UTCDateTime


def now(_: Connection) -> ColumnElement[datetime]:
    return func.clock_timestamp(type_=UTCDateTime)


def later(connection: Connection, seconds: float) -> ColumnElement[datetime]:
    return now(connection) + func.make_interval(0, 0, 0, 0, 0, 0, literal(seconds))


def read_now(connection: Connection) -> datetime:
    return connection.execute(select(now(connection))).scalar_one()


def as_stored(moment: datetime) -> datetime:
    return moment
