"""The time on PostgreSQL: the clock of the server, so that the hosts of clients need not agree."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Double, Interval, func, literal, select

from sessionsdb.engine.statement import Statement
from sessionsdb.schema import UTCDateTime

PRESENT = "(SELECT pg_catalog.clock_timestamp())"

_READ = Statement("SELECT pg_catalog.clock_timestamp()")

_PRESENT = func.pg_catalog.clock_timestamp(type_=UTCDateTime)


def now(_: Connection) -> ColumnElement[datetime]:
    # As a subquery, because no index is searched for a time that may change from row to row. Citus
    # also refuses a volatile function in an UPDATE.
    return select(_PRESENT).scalar_subquery()


def later(_: Connection, seconds: float) -> ColumnElement[datetime]:
    # Citus refuses a subquery in an INSERT.
    return _PRESENT + func.pg_catalog.make_interval(
        0, 0, 0, 0, 0, 0, literal(seconds, Double), type_=Interval
    )


def read_now(connection: Connection) -> datetime:
    present: datetime = _READ.rows(connection, {})[0][0]
    return present


def present_values(_: Connection) -> dict[str, str]:
    return {}


def as_stored(moment: datetime) -> datetime:
    return moment
