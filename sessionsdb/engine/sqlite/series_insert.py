"""An INSERT of many rows of one series, as the messages of a transcript are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.statement import kept_cursor
from sessionsdb.private_apis import has_listeners, raise_as_sqlalchemy

SIZES = (32, 16, 8, 4, 2, 1)
"""Rows of one statement. Few sizes are few texts, which the driver keeps prepared, each with the
values of its last run. 64 rows are no faster than 32."""

NUMBERS_ARE_NAMES = (3, 12) <= sys.version_info < (3, 12, 4)
"""Python 3.12.0 to 3.12.3 take ?1 for a parameter with the name 1, and warn when it gets a
tuple."""


class SeriesInsert:
    """INSERTs of rows with the same values in some columns and a number that counts them, on SQLite
    only.

    A shared value is passed once for a statement. So three values of a message are passed and not
    eight, and it needs no tuple of its own. 64 callers append 20 messages 7,200 times a second, and
    6,700 times with ``Insert``. One or two messages of many sessions are faster in ``Insert``.
    """

    def __init__(
        self, table: str, *, shared: Sequence[str], counted: str, columns: Sequence[str]
    ) -> None:
        self._texts = {size: _series_text(table, shared, counted, columns, size) for size in SIZES}

    def write(
        self,
        connection: Connection,
        shared: tuple[Any, ...],
        last: int,
        rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """Insert ``rows`` in order. The first one has the number ``last + 1``."""
        done = 0
        for size in SIZES:
            while len(rows) - done >= size:
                values = (*shared, last + done, *chain.from_iterable(rows[done : done + size]))
                _execute_numbered(connection, self._texts[size], values)
                done += size


def _series_text(
    table: str, shared: Sequence[str], counted: str, columns: Sequence[str], size: int
) -> str:
    common = [f"?{number}" for number in range(1, len(shared) + 1)]
    last = len(shared) + 1
    rows = [
        ", ".join(
            (
                *common,
                f"?{last} + {place + 1}",
                *(f"?{last + place * len(columns) + i}" for i in range(1, len(columns) + 1)),
            )
        )
        for place in range(size)
    ]
    names = ", ".join((*shared, counted, *columns))
    return f"INSERT INTO {table} ({names}) VALUES ({'), ('.join(rows)})"


def _execute_numbered(connection: Connection, sql: str, values: tuple[Any, ...]) -> None:
    parameters: Any = values
    if NUMBERS_ARE_NAMES:
        parameters = {str(number): value for number, value in enumerate(values, 1)}
    if has_listeners(connection):
        connection.exec_driver_sql(sql, parameters)
        return
    try:
        kept_cursor(connection).execute(sql, parameters)
    except BaseException as error:
        raise_as_sqlalchemy(connection, sql, error)
