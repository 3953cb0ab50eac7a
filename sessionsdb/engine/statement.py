"""A hot statement: SQL that goes to the driver as it stands.

SQLAlchemy compiles, binds and adapts each execution, and makes rows out of what comes back. That is
worth its price everywhere but here: measured, an UPDATE … RETURNING of one row takes 20 µs through
SQLAlchemy on SQLite and 3 µs through the driver; on PostgreSQL a lone append takes 340 µs of
processor time and 210, and a history of 50 messages 300 and 95.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.private_apis import has_listeners, raise_as_sqlalchemy

Row = Sequence[Any]
"""A row as the driver has it: values by their place."""

_CURSOR = "sessionsdb_cursor"
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class Statement:
    """One statement, written with ``:name`` parameters, for SQLite's driver and PostgreSQL's.

    It runs in whatever transaction the connection is in, and fails as SQLAlchemy fails. Values are
    the driver's own: a time is text on SQLite and aware on PostgreSQL.
    """

    def __init__(self, sql: str) -> None:
        self.sql = sql
        self._names = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        self._numbered = self._with("$")
        self._placed = self._with("?")

    def _with(self, mark: str) -> str:
        """The statement with its parameters numbered, in the driver's way."""
        places = {name: f"{mark}{number}" for number, name in enumerate(self._names, 1)}
        return _PARAMETER.sub(lambda found: places[found[1]], self.sql)

    def rows(self, connection: Connection, parameters: Mapping[str, Any]) -> Sequence[Row]:
        """Run it; what it returns."""
        sql: str = self.sql
        values: Any = parameters
        if connection.dialect.name == "postgresql":
            sql, values = self._numbered, tuple([parameters[name] for name in self._names])
        if has_listeners(connection):
            result = connection.exec_driver_sql(sql, values)
            return result.all() if result.returns_rows else []
        cursor = _cursor(connection)
        try:
            cursor.execute(sql, values)
            rows: Sequence[Row] = cursor.fetchall()
            return rows
        except BaseException as error:
            raise_as_sqlalchemy(connection, sql, error)

    def row(self, connection: Connection, parameters: Mapping[str, Any]) -> Row | None:
        """Run it; the first row, if there is one."""
        rows = self.rows(connection, parameters)
        return rows[0] if rows else None

    def each(self, connection: Connection, parameters: Sequence[tuple[Any, ...]]) -> None:
        """Run it once for each of ``parameters``, values in the order in which the statement names
        them first: on SQLite, where that costs no round trip."""
        if not parameters:
            return
        if has_listeners(connection):
            connection.exec_driver_sql(self._placed, list(parameters))
            return
        try:
            _cursor(connection).executemany(self._placed, parameters)
        except BaseException as error:
            raise_as_sqlalchemy(connection, self._placed, error)


def close_cursor(connection: Connection) -> None:
    """Before a SQLite connection is closed: its cursor would keep it open behind the scenes, and
    its log with it."""
    cursor = connection.connection.info.pop(_CURSOR, None)
    if cursor is not None:
        cursor.close()


def _cursor(connection: Connection) -> Any:
    """A cursor of the driver; on SQLite always the same one, for a new one costs as much as what
    it executes. Nothing is left in it: ``rows`` fetches all."""
    held = connection.connection
    cursor: Any = held.info.get(_CURSOR)
    if cursor is None:
        cursor = held.cursor()
        if isinstance(cursor, sqlite3.Cursor):
            held.info[_CURSOR] = cursor
    return cursor
