"""The columns that hold JSON, and a walk over their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, or_, select, tuple_

from sessionsdb.errors import DamagedValue
from sessionsdb.messages.json_text import parse
from sessionsdb.schema import (
    inbox,
    messages,
    pieces,
    questions,
    schedules,
    sessions,
    state_values,
)

FORMS: dict[Table, dict[str, type]] = {
    sessions: {"tools": list, "metadata": dict},
    messages: {"payload": dict, "extra": dict},
    inbox: {"payload": dict, "extra": dict},
    questions: {"payload": dict},
    schedules: {"payload": dict, "extra": dict},
    state_values: {"value": object},
    pieces: {"data": object},
}
"""For each table its JSON columns, and the Python type of their values. ``object``: any."""

NAMES: dict[type, str] = {list: "JSON array", dict: "JSON object", object: "JSON"}
"""The names of these types in errors."""

PAGE = 100
"""Rows that are read at once: a message may be large."""


class ValuePage(NamedTuple):
    """The damaged values of some rows."""

    faults: list[str]
    """For each damaged value the key of its row, its column and the fault."""
    last: tuple[Any, ...] | None
    """The key of the last row. ``None``: the table has no more rows."""


def read_faults(connection: Connection, table: Table, after: Sequence[Any] | None) -> ValuePage:
    """Read the next rows of a table by primary key, and return the values that can't be read."""
    forms = FORMS[table]
    keys = list(table.primary_key.columns)
    columns = [table.c[name] for name in forms]
    statement = (
        select(*keys, *columns)
        .where(or_(*(column.is_not(None) for column in columns)))
        .order_by(*keys)
        .limit(PAGE)
    )
    if after is not None:
        statement = statement.where(tuple_(*keys) > tuple_(*after))
    rows = connection.execute(statement).all()
    faults = [
        f"{table.name} {'/'.join(map(str, row[: len(keys)]))}: {name} {fault}"
        for row in rows
        for (name, wanted), value in zip(forms.items(), row[len(keys) :], strict=True)
        if value is not None and (fault := fault_of(value, wanted))
    ]
    return ValuePage(faults, tuple(rows[-1][: len(keys)]) if len(rows) == PAGE else None)


def fault_of(text: Any, wanted: type) -> str | None:
    """Return the fault of the text of a JSON value, ``None`` if it can be read."""
    try:
        value = parse(text)
    except DamagedValue:
        return "is no JSON"
    return None if isinstance(value, wanted) else f"is no {NAMES[wanted]}"
