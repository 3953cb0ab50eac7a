"""A hot statement: SQL text that is passed to the driver without SQLAlchemy's processing.

SQLAlchemy compiles each statement, adapts its parameters and converts its rows. On the hot paths
that costs too much. An UPDATE … RETURNING of one row on SQLite takes 20 µs with SQLAlchemy and 3 µs
with the driver. On PostgreSQL, in processor time, a single append takes 340 µs with SQLAlchemy and
210 µs with the driver. A history of 50 messages takes 300 µs and 95 µs.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.dialect import kind_of
from sessionsdb.private_apis import fetch_rows, has_listeners, raise_as_sqlalchemy

Row = Sequence[Any]
"""A row as the driver returns it: the values in the order of the columns."""

QUALIFIER = "pg_catalog."
"""The schema of PostgreSQL's own functions."""

INSERTED_AT_ONCE = 32
"""Rows of one statement of ``Insert.each``."""

_CURSOR = "sessionsdb_cursor"
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_][a-z_0-9]*)")


class Statement:
    """One SQL statement with ``:name`` parameters, for the drivers of SQLite and PostgreSQL.

    It runs in the current transaction of the connection and raises the errors of SQLAlchemy.
    Values are in the driver's form: a time is text on SQLite and an aware datetime on PostgreSQL.

    A function is written with its schema, ``pg_catalog.count(*)``. Otherwise PostgreSQL may call a
    function of the same name that another role created in a schema of the search path. SQLite has
    no such schema, and gets the bare name.
    """

    def __init__(self, sql: str) -> None:
        self.sql = sql
        self._names = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        numbered = {name: f"${number}" for number, name in enumerate(self._names, 1)}
        self._for_postgresql = _PARAMETER.sub(lambda match: numbered[match[1]], sql)
        self._for_sqlite = sql.replace(QUALIFIER, "")
        # Python 3.12.0 to 3.12.3 take ?1 for a named parameter, and warn when it gets a tuple.
        self._for_sqlite_tuples = _PARAMETER.sub("?", self._for_sqlite)

    def rows(self, connection: Connection, parameters: Mapping[str, Any]) -> Sequence[Row]:
        """Run the statement and return its rows."""
        if kind_of(connection) == "postgresql":
            return self._rows_of_postgresql(connection, parameters)
        if has_listeners(connection):
            result = connection.exec_driver_sql(self._for_sqlite, dict(parameters))
            return result.all() if result.returns_rows else []
        cursor = kept_cursor(connection)
        try:
            cursor.execute(self._for_sqlite, parameters)
            rows: Sequence[Row] = cursor.fetchall()
            return rows
        except BaseException as error:
            # A statement that has begun would keep the snapshot open behind the transaction.
            connection.connection.info.pop(_CURSOR, None)
            with contextlib.suppress(Exception):
                cursor.close()
            raise_as_sqlalchemy(connection, self._for_sqlite, error)

    def _rows_of_postgresql(
        self, connection: Connection, parameters: Mapping[str, Any]
    ) -> Sequence[Row]:
        values = tuple([parameters[name] for name in self._names])
        if has_listeners(connection):
            result = connection.exec_driver_sql(self._for_postgresql, values)
            return result.all() if result.returns_rows else []
        try:
            return fetch_rows(connection, self._for_postgresql, values)
        except BaseException as error:
            raise_as_sqlalchemy(connection, self._for_postgresql, error)

    def row(self, connection: Connection, parameters: Mapping[str, Any]) -> Row | None:
        """Run the statement and return its first row, or ``None``."""
        rows = self.rows(connection, parameters)
        return rows[0] if rows else None

    def changes(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Run an UPDATE and return how many rows it has changed, on SQLite only.

        For RETURNING, SQLite makes a table of its own: 3 to 5 µs for one row. A SELECT by the
        primary key behind the UPDATE takes 1.5 µs.
        """
        if has_listeners(connection):
            return connection.exec_driver_sql(self._for_sqlite, dict(parameters)).rowcount
        cursor = kept_cursor(connection)
        try:
            # On a connection of the caller the cursor is SQLAlchemy's, whose `execute` returns
            # nothing before SQLAlchemy 2.1.
            cursor.execute(self._for_sqlite, parameters)
            changed: int = cursor.rowcount
            return changed
        except BaseException as error:
            raise_as_sqlalchemy(connection, self._for_sqlite, error)

    def each(self, connection: Connection, parameters: Sequence[tuple[Any, ...]]) -> None:
        """Run the statement once for each tuple of ``parameters``, on SQLite only.

        SQLite has no round trips, so many small executions are cheap. A tuple holds one value for
        each parameter of the text, in its order. A name that stands twice takes two values.
        """
        if not parameters:
            return
        if has_listeners(connection):
            connection.exec_driver_sql(self._for_sqlite_tuples, list(parameters))
            return
        try:
            kept_cursor(connection).executemany(self._for_sqlite_tuples, parameters)
        except BaseException as error:
            raise_as_sqlalchemy(connection, self._for_sqlite_tuples, error)


class Insert(Statement):
    """An INSERT of one row that ends in ``VALUES (…)``.

    On SQLite ``each`` inserts 32 rows with one statement while there are so many: a message takes
    3.3 µs instead of 4.2. The driver gives up Python's lock for each statement, and the other
    threads contend for it then.
    """

    def __init__(self, sql: str) -> None:
        super().__init__(sql)
        begin, _, row = self._for_sqlite_tuples.rpartition("VALUES")
        self._for_many = f"{begin}VALUES {', '.join([row.strip()] * INSERTED_AT_ONCE)}"

    def each(self, connection: Connection, parameters: Sequence[tuple[Any, ...]]) -> None:
        if len(parameters) < INSERTED_AT_ONCE or has_listeners(connection):
            super().each(connection, parameters)
            return
        rest = len(parameters) % INSERTED_AT_ONCE
        many = len(parameters) - rest
        cursor = kept_cursor(connection)
        try:
            for start in range(0, many, INSERTED_AT_ONCE):
                rows = parameters[start : start + INSERTED_AT_ONCE]
                cursor.execute(self._for_many, tuple(chain.from_iterable(rows)))
        except BaseException as error:
            raise_as_sqlalchemy(connection, self._for_sqlite_tuples, error)
        super().each(connection, parameters[many:])


def close_cursor(connection: Connection) -> None:
    """Close the cursor that is kept with a SQLite connection, before the connection is closed.

    An open cursor would keep the connection and its write-ahead log open.
    """
    cursor = connection.connection.info.pop(_CURSOR, None)
    if cursor is not None:
        cursor.close()


def kept_cursor(connection: Connection) -> Any:
    """Return a cursor of the driver.

    SQLite's is kept and used again, because a new one costs as much as the statement. That is safe:
    ``rows`` fetches everything.
    """
    pooled = connection.connection
    cursor: Any = pooled.info.get(_CURSOR)
    if cursor is None:
        cursor = pooled.cursor()
        if isinstance(cursor, sqlite3.Cursor):
            pooled.info[_CURSOR] = cursor
    return cursor
