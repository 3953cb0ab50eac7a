"""Read a report: one SELECT over its view, which can be run or printed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    Double,
    Row,
    Select,
    Text,
    column,
    select,
    table,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeEngine

from sessionsdb import InvalidArgument, SessionsDB, StorageError, validation
from sessionsdb.database import open_database_of, reads_of
from sessionsdb.engine.dialect import Kind, kind_of
from sessionsdb.engine.postgresql.retries import DATABASE_ERRORS
from sessionsdb.engine.sqlite.engine import DEFERRED_OPTION
from sessionsdb.private_apis import keep_backslashes
from sessionsdb.reports.catalogue import REPORTS, Column, ColumnKind, View
from sessionsdb.schema import PlainText, UTCDateTime
from sessionsdb.untrusted_values import plain_text, short_repr

_TYPES: dict[ColumnKind, TypeEngine[Any]] = {
    "text": PlainText,
    "integer": BigInteger(),
    "seconds": Double(),
    "time": UTCDateTime(),
    "day": Date(),
}


class _ReadMode(NamedTuple):
    """The settings of a transaction that only reads."""

    options: dict[str, Any]
    first_statement: str | None


_READ_MODES: dict[Kind, _ReadMode] = {
    # A deferred transaction takes no write lock.
    "sqlite": _ReadMode({DEFERRED_OPTION: True}, None),
    # Our engines use generic plans, which suit short statements. The rows of a report depend
    # on its namespace, so it needs a plan for its values.
    "postgresql": _ReadMode(
        {"postgresql_readonly": True}, "SET LOCAL plan_cache_mode = force_custom_plan"
    ),
}

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(\d{1,6})([mhdw])")


class Report(NamedTuple):
    """The rows of a report, each with one value for each column of the view.

    A value is ``str``, ``int``, ``float`` (seconds), ``datetime`` in UTC, ``date`` or ``None``.
    """

    view: View
    rows: list[tuple[Any, ...]]

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.view.columns

    def dicts(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries by column name."""
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
    """Return a report of the handle's namespace.

    ``name`` is ``sessions``, ``turns``, ``activity``, ``latency``, ``inbox`` or ``tree``. ``since``
    keeps rows that were active, finished or dated since then. ``channel`` keeps one channel, for a
    tree the channel of its root. ``limit`` is the maximum number of rows.

    Raises ``InvalidArgument``, and ``StorageError`` when the database fails.
    """
    db = validation.strict_instance(db, SessionsDB, "db")
    return await _read(
        db, name, query(name, db.namespace, since=since, channel=channel, limit=limit)
    )


async def read_sessions(db: SessionsDB, ids: Collection[str]) -> Report:
    """Return the rows of these sessions in the report ``sessions``. Raises ``StorageError``."""
    statement = query("sessions", db.namespace)
    return await _read(db, "sessions", statement.where(column("session_id", PlainText).in_(ids)))


async def _read(db: SessionsDB, name: str, statement: Select[Any]) -> Report:
    mode = _READ_MODES[kind_of(db.engine)]
    select_rows = partial(_select_rows, statement=statement, first=mode.first_statement)
    standby = reads_of(db)
    try:
        if standby is not None:
            rows = await standby.read_snapshot(select_rows)
        else:
            # This fails if the file is gone. SQLite would create an empty one below.
            await open_database_of(db).read(_nothing)
            async with db.engine.connect() as connection:
                await connection.execution_options(**mode.options)
                rows = await connection.run_sync(select_rows)
    except DATABASE_ERRORS as error:
        raise StorageError(f"the report can't be read: {getattr(error, 'orig', error)}") from error
    return Report(REPORTS[plain_text(name)], [tuple(row) for row in rows])


def _nothing(_connection: Connection) -> None:
    """Read nothing."""


def _select_rows(
    connection: Connection, statement: Select[Any], first: str | None
) -> Sequence[Row[Any]]:
    if first is not None:
        connection.exec_driver_sql(first)
    return connection.execute(statement).all()


def query(
    name: str,
    namespace: str,
    *,
    since: datetime | None = None,
    channel: str | None = None,
    limit: int | None = None,
) -> Select[Any]:
    """Return the statement that ``read`` runs."""
    view = REPORTS.get(validation.name(name, "the report's name"))
    if view is None:
        raise InvalidArgument(f"no report {short_repr(name)}; the reports are {', '.join(REPORTS)}")
    namespace = validation.namespace(namespace)
    columns = {c.name: column(c.name, _TYPES[c.kind]) for c in view.columns}
    statement = (
        select(*columns.values())
        .select_from(table(view.name))
        .where(columns["namespace"] == namespace)
        .order_by(*(_order_by(columns, by) for by in view.order))
        .limit(validation.optional_integer(limit, "limit"))
    )
    if since is not None:
        if view.since is None:
            raise InvalidArgument(f"the report {name!r} shows the present, so since has no meaning")
        begin = validation.aware_datetime(since, "since")
        filtered = columns[view.since]
        of_day = isinstance(filtered.type, Date)
        statement = statement.where(filtered >= (begin.date() if of_day else begin))
    if channel is not None:
        channel = validation.name(channel, "channel", empty=True)
        statement = statement.where(columns[view.channel] == channel)
    return statement


class _ByCodePoint(ColumnElement[str]):
    """A text that is ordered by its code points, as SQLite does, and not by a server's locale."""

    inherit_cache = True
    # SQLAlchemy declares it without ClassVar.
    _traverse_internals = [("text", InternalTraversal.dp_clauseelement)]  # noqa: RUF012

    def __init__(self, text: ColumnElement[str]) -> None:
        self.text = text


@compiles(_ByCodePoint)
def _compile(element: _ByCodePoint, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.text, **options)


@compiles(_ByCodePoint, "postgresql")
def _compile_for_postgresql(element: _ByCodePoint, compiler: SQLCompiler, **options: Any) -> str:
    return f'{compiler.process(element.text, **options)} COLLATE "C"'


def _order_by(columns: dict[str, Any], by: str) -> Any:
    ordered = columns[by.removeprefix("-")]
    if isinstance(ordered.type, Text):
        ordered = _ByCodePoint(ordered)
    return ordered.desc() if by.startswith("-") else ordered


def as_sql(statement: Select[Any], dialect: str) -> str:
    """Return the statement with its values as SQL text.

    ``dialect`` is ``postgresql`` for psql, or ``sqlite`` for sqlite3.
    """
    validation.strict_instance(statement, Select, "statement")
    validation.one_of(dialect, ("postgresql", "sqlite"), "dialect")
    target = _sqlalchemy_dialect(dialect)
    keep_backslashes(target)
    compiled = str(statement.compile(dialect=target, compile_kwargs={"literal_binds": True}))
    if dialect == "postgresql":  # SQLAlchemy doubles % for drivers that use it for parameters
        compiled = compiled.replace("%%", "%")
    # One clause a line. No value is before the first WHERE or after the last ORDER BY.
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


def _sqlalchemy_dialect(name: str) -> Dialect:
    # Here, because a report on SQLite needs no dialect of PostgreSQL.
    from sqlalchemy.dialects import postgresql, sqlite

    dialects: dict[str, Callable[[], Dialect]] = {
        "sqlite": sqlite.dialect,
        "postgresql": postgresql.dialect,
    }
    return dialects[name]()


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """Return the time that ``text`` names, in UTC. Raises ``InvalidArgument``.

    ``text`` is an age (``7d``, ``24h``, ``90m``, ``2w``), or a day or time in ISO 8601. It is in
    UTC unless it has an offset.
    """
    text = validation.name(text, "the time", empty=True)
    present = datetime.now(UTC) if now is None else validation.aware_datetime(now, "now")
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            return present - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text.strip())
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{text!r:.60} is no time: write an age like 7d, 24h, 90m or 2w, "
            "or a day or time like 2026-01-31 or 2026-01-31T12:00:00+02:00"
        ) from None
