"""Reading a report: one SELECT over its view, which can be printed as well as run."""

from __future__ import annotations

import re
import textwrap
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Date, Double, Select, Text, column, select, table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.types import TypeEngine

from sessionsdb import InvalidArgument, SessionsDB, StorageError, validation
from sessionsdb.engine.sqlite.engine import DEFERRED_OPTION
from sessionsdb.reports.catalogue import REPORTS, Column, Kind, View
from sessionsdb.schema import UTCDateTime

_TYPES: dict[Kind, TypeEngine[Any]] = {
    "text": Text(),
    "integer": BigInteger(),
    "seconds": Double(),
    "time": UTCDateTime(),
    "day": Date(),
}

# Our engines plan for any values, which is right for short statements. How much a report has to
# read depends on the namespace it is for.
_PLAN_FOR_THE_VALUES = "SET LOCAL plan_cache_mode = force_custom_plan"

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(\d{1,6})([mhdw])")


class Report(NamedTuple):
    """The rows of a report, each with a value for each of the view's columns: ``str``, ``int``,
    ``float`` (seconds), ``datetime`` in UTC, ``date``, or ``None``."""

    view: View
    rows: list[tuple[Any, ...]]

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.view.columns

    def dicts(self) -> list[dict[str, Any]]:
        """The rows by column name."""
        names = [column.name for column in self.columns]
        return [dict(zip(names, row, strict=True)) for row in self.rows]


async def read(
    db: SessionsDB,
    name: str,
    *,
    since: datetime | None = None,
    channel: str | None = None,
    limit: int | None = None,
) -> Report:
    """The report ``name`` (``sessions``, ``turns``, ``activity``, ``latency``, ``inbox`` or
    ``tree``) of the handle's namespace.

    ``since`` is for what was last active, finished, or on a day since; ``channel`` for one channel
    (of a tree: its root's); ``limit`` for the first so many rows. Raises ``InvalidArgument``.
    """
    db = validation.strict_instance(db, SessionsDB, "db")
    statement = query(name, db.namespace, since=since, channel=channel, limit=limit)
    # It only reads: on SQLite it must not ask for the write lock.
    options: dict[str, Any] = {DEFERRED_OPTION: True}
    if db.engine.dialect.name == "postgresql":
        options = {"postgresql_readonly": True}
    try:
        async with db.engine.connect() as connection:
            await connection.execution_options(**options)
            if db.engine.dialect.name == "postgresql":
                await connection.exec_driver_sql(_PLAN_FOR_THE_VALUES)
            rows = (await connection.execute(statement)).all()
    except (SQLAlchemyError, OSError) as error:
        raise StorageError(f"the report can't be read: {getattr(error, 'orig', error)}") from error
    return Report(REPORTS[str.__str__(name)], [tuple(row) for row in rows])


def query(
    name: str,
    namespace: str,
    *,
    since: datetime | None = None,
    channel: str | None = None,
    limit: int | None = None,
) -> Select[Any]:
    """The statement that ``read`` runs."""
    view = REPORTS.get(validation.name(name, "the report's name"))
    if view is None:
        raise InvalidArgument(
            f"no report {validation.short_repr(name)}; there are {', '.join(REPORTS)}"
        )
    namespace = validation.namespace(namespace)
    columns = {c.name: column(c.name, _TYPES[c.kind]) for c in view.columns}
    statement = (
        select(*columns.values())
        .select_from(table(view.name))
        .where(columns["namespace"] == namespace)
        .order_by(*(_ordered(columns, by) for by in view.order))
        .limit(validation.optional_integer(limit, "limit"))
    )
    if since is not None:
        if view.since is None:
            raise InvalidArgument(f"the report {name!r} is about now: it takes no time since when")
        begin = validation.aware_datetime(since, "since")
        moment = columns[view.since]
        of_day = isinstance(moment.type, Date)
        statement = statement.where(moment >= (begin.date() if of_day else begin))
    if channel is not None:
        channel = validation.name(channel, "channel", empty=True)
        statement = statement.where(columns[view.channel] == channel)
    return statement


def _ordered(columns: dict[str, Any], by: str) -> Any:
    return columns[by[1:]].desc() if by.startswith("-") else columns[by]


def as_sql(statement: Select[Any], dialect: str) -> str:
    """The statement with its values in it, for psql (``postgresql``) or sqlite3 (``sqlite``)."""
    validation.strict_instance(statement, Select, "statement")
    validation.one_of(dialect, ("postgresql", "sqlite"), "dialect")
    written: Any = postgresql.dialect() if dialect == "postgresql" else sqlite.dialect()  # type: ignore[no-untyped-call]
    compiled = str(statement.compile(dialect=written, compile_kwargs={"literal_binds": True}))
    if dialect == "postgresql":  # doubled for drivers that take % for a parameter
        compiled = compiled.replace("%%", "%")
    # A line a clause. No value stands before the first WHERE or behind the last ORDER BY.
    columns, _, rest = compiled.partition("\nFROM ")
    source, _, rest = rest.partition("\nWHERE ")
    conditions, _, order = rest.rpartition(" ORDER BY ")
    lines = [
        textwrap.fill(columns, 88, subsequent_indent="    ", break_on_hyphens=False),
        f"FROM {source.strip()}",
        f"WHERE {conditions}",
        f"ORDER BY {order.replace(' OFFSET 0', '').rstrip()};",
    ]
    return "\n".join(lines)


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """``7d``, ``24h``, ``90m`` or ``2w`` ago, or a day or time in ISO 8601, UTC unless it names an
    offset. Raises ``InvalidArgument``."""
    text = validation.name(text, "the time", empty=True)
    present = datetime.now(UTC) if now is None else validation.aware_datetime(now, "now")
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            span = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            return present - span
        moment = datetime.fromisoformat(text.strip())
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{text!r:.60} is no time: write 7d, 24h, 90m or 2w for so long ago, "
            "or a day or time like 2026-01-31 or 2026-01-31T12:00:00+02:00"
        ) from None
