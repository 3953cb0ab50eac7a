"""The private parts of libraries that this package uses, all in one place.

Each entry says which public way it replaces and the gain. ``pyproject.toml`` bounds the versions of
these libraries, and ``tests/test_private_apis.py`` tests each entry.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from threading import Thread
from types import ModuleType
from typing import Any, NoReturn

import aiosqlite
from greenlet import greenlet
from pydantic import BaseModel
from sqlalchemy import Connection
from sqlalchemy.util import await_only

# ---- aiosqlite -----------------------------------------------------------------------------------

run_on_thread: Callable[..., Coroutine[Any, Any, Any]] = aiosqlite.Connection._execute
"""Run a function on the thread of a connection.

The public methods run one statement each. A transaction of three statements takes 2.2 ms through
them and SQLAlchemy's asyncio layer, and 0.2 ms as one function.
"""


def sqlite3_connection(connection: aiosqlite.Connection) -> sqlite3.Connection:
    """Return the connection of the standard library, for use on the connection's thread only.

    There is no public way.
    """
    return connection._conn


def thread_of(connection: aiosqlite.Connection) -> Thread:
    """Return the thread of a connection. There is no public way to wait until it has ended.

    Before aiosqlite 0.22 the connection itself is the thread.
    """
    return connection if isinstance(connection, Thread) else connection._thread


# ---- asyncpg -------------------------------------------------------------------------------------

_ARRAY_TYPES = [
    {
        "oid": oid,
        "ns": "pg_catalog",
        "name": f"_{name}",
        "elemtype": element,
        "elemtype_name": name,
        "elemdelim": ",",
        "kind": b"b",
        "attrtypoids": None,
        "basetype": None,
        "range_subtype": None,
    }
    for oid, name, element in (
        (1000, "bool", 16),
        (1007, "int4", 23),
        (1016, "int8", 20),
        (1185, "timestamptz", 1184),
    )
]


def know_array_types(connection: Any) -> None:
    """Tell a connection of asyncpg the array types that our statements have as parameters.

    Otherwise it asks the server at the first use, by a query that names no schemas of functions. An
    overload on the search path would be called. It also saves that round trip. There is no public
    way.
    """
    connection._protocol.get_settings().register_data_types(_ARRAY_TYPES)


def forget_transaction(connection: Any) -> None:
    """Tell a connection of asyncpg that the transaction whose BEGIN failed is over.

    Otherwise it takes the next transaction for a part of that one. There is no public way.
    """
    connection._top_xact = None


# ---- SQLAlchemy ----------------------------------------------------------------------------------


def has_listeners(connection: Connection) -> bool:
    """Return whether events or logs observe the statements that SQLAlchemy executes.

    ``_has_events`` is checked first, since ``connection.dispatch`` takes 3 µs, as long as a whole
    UPDATE of one row by SQLite's driver.
    """
    if not (connection._has_events or connection.engine._has_events):
        return connection._echo
    listeners = connection.dispatch
    return bool(
        connection._echo or listeners.before_cursor_execute or listeners.after_cursor_execute
    )


def is_autocommit(connection: Connection) -> bool:
    """Return whether the isolation level of a connection is AUTOCOMMIT, by its own options or by
    those of its engine. There is no public way to read what ``create_engine`` was given.
    """
    return connection._is_autocommit_isolation()


def raise_as_sqlalchemy(connection: Connection, sql: str, error: BaseException) -> NoReturn:
    """Raise the error that SQLAlchemy raises for a driver's error.

    It calls the ``handle_error`` listeners and invalidates a lost connection. There is no public
    way.
    """
    connection._handle_dbapi_exception(error, sql, None, None, None)


def fetch_rows(connection: Connection, sql: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Run a statement on a connection of asyncpg, and return its rows as asyncpg makes them.

    It is called inside ``run_sync`` or an ``AwaitingGreenlet``. Like a cursor it begins a
    transaction, and raises the errors of SQLAlchemy's dialect. A cursor also describes the columns,
    copies the rows and reads the status: ``SELECT 1`` takes 46 µs with it, and 29 without. There is
    no public way.
    """
    return await_only(_fetch(connection.connection.dbapi_connection, sql, values))


async def _fetch(adapted: Any, sql: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
    async with adapted._execute_mutex:
        # SQLAlchemy 2.0 keeps a flag beside the transaction.
        if not getattr(adapted, "_started", adapted._transaction is not None):
            await adapted._start_transaction()
        try:
            prepared, _attributes = await adapted._prepare(sql, 0.0)
            rows: Sequence[Sequence[Any]] = await prepared.fetch(*values)
            return rows
        except Exception as error:
            adapted._handle_exception(error)
            raise


class AwaitingGreenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A greenlet in which ``await_only`` works: it passes the awaitable to the parent.

    The public ``greenlet_spawn`` makes a new greenlet for each call. The attribute that marks one
    is private.
    """

    __sqlalchemy_greenlet_provider__ = True


def keep_backslashes(dialect: Any) -> None:
    """Let a dialect of PostgreSQL write a backslash in a literal once.

    SQLAlchemy 2.0 doubles it until the dialect has asked a server, and a text for ``psql`` asks
    none. A backslash has no meaning in a literal since PostgreSQL 9.1. There is no public way.
    """
    dialect._backslash_escapes = False


# ---- pydantic ------------------------------------------------------------------------------------

set_model_values, set_model_fields_set, set_model_extra, set_model_private = (
    BaseModel.__dict__[slot].__set__
    for slot in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)
"""Fill the four slots of a model without validation.

``model_construct`` looks each field up: 4.9 µs for a message, and 0.5 µs by the slots. A page of
history has 50 messages.
"""

# ---- OpenTelemetry -------------------------------------------------------------------------------


def has_tracer_provider(trace: ModuleType) -> bool:
    """Return whether the application has set a tracer provider. ``trace``: ``opentelemetry.trace``.

    The public ``get_tracer_provider`` reads the environment at each call. A span that is not
    started costs a tenth of one without a provider.
    """
    return trace._TRACER_PROVIDER is not None


def has_no_provider(meter: object) -> bool:
    """Return whether the application has set no meter provider for a meter of OpenTelemetry's API.

    The public ``get_meter_provider`` reads the environment at each call.
    """
    return getattr(meter, "_real_meter", meter) is None
