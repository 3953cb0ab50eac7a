"""Make SQLAlchemy engines for SQLite, and configure their connections."""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import aiosqlite
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.util import await_only

from sessionsdb.engine import urls
from sessionsdb.engine.sqlite import read_only
from sessionsdb.engine.sqlite.database_file import SqliteFile, create_private
from sessionsdb.engine.sqlite.write_lock import begin_immediate_on
from sessionsdb.private_apis import run_on_thread, sqlite3_connection, thread_of
from sessionsdb.types import Durability

READERS = 2

END_POLL_SECONDS = 0.001
"""The pause between two looks at a connection's thread that is about to end."""

WAL_SIZE_LIMIT_BYTES = 16 * 1024 * 1024
"""The size to which a log is truncated that has grown during a long read.

Without long reads a log has 4 MB.
"""

_CONFIGURED: weakref.WeakSet[Engine] = weakref.WeakSet()
"""The engines that have their listeners. An application may share one among several handles."""

DEFERRED_OPTION = "sessionsdb_begin_deferred"
"""Execution option for a connection that only reads: its transactions begin DEFERRED."""

_RECORD_INFO_KEY = "sessionsdb"


def create_sqlite_engine(url: URL) -> Engine:
    """Return an engine for a URL, the one behind an ``AsyncEngine``."""
    connect_args: dict[str, Any] = {"async_creator_fn": _connect}
    if urls.is_in_memory(url):
        return create_engine(url, connect_args=connect_args)
    return create_engine(url, connect_args=connect_args, pool_size=READERS + 3, max_overflow=10)


async def _connect(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """Connect as SQLAlchemy does. After a failure, wait for the connection's thread to end.

    The thread still has to answer to this event loop. It prints a traceback if the loop is closed
    by then.
    """
    connection = await _opened(aiosqlite.connect(*arguments, **options))
    try:
        immutable = await read_only.immutable_if_needed(connection, str(arguments[0]), options)
    except BaseException:
        await connection.close()
        raise
    if immutable is None:
        return connection
    await connection.close()
    return await _opened(immutable)


async def _opened(connection: aiosqlite.Connection) -> aiosqlite.Connection:
    thread = thread_of(connection)
    thread.daemon = True
    try:
        return await connection
    except BaseException:
        # Not in a thread: handlers may hold all those of the event loop's executor.
        while thread.is_alive():  # noqa: ASYNC110 - a thread that ends sets no event
            await asyncio.sleep(END_POLL_SECONDS)
        raise


def configure_connections(engine: Engine, durability: Durability) -> None:
    """Set the pragmas that correctness needs on every connection, also on those open already.

    Transactions begin IMMEDIATE. A transaction that reads first and writes later would fail at
    once when another has written in between, without waiting for the busy timeout.
    """
    if engine in _CONFIGURED:
        return
    _CONFIGURED.add(engine)

    @event.listens_for(engine, "do_connect")
    def _connect_to_private_file(
        dialect: Any, _record: Any, arguments: list[Any], options: Any
    ) -> Any:
        created = create_private(arguments[0], is_uri=bool(options.get("uri")))
        if created is None:
            return None  # SQLAlchemy connects
        try:
            return dialect.connect(*arguments, **options)
        except BaseException:
            if created.stat().st_size == 0:
                created.unlink()
            raise

    busy_seconds = urls.busy_seconds(engine.url)
    pragmas = _pragmas(durability, busy_seconds)

    @event.listens_for(engine, "checkout")
    def _configure(driver_connection: Any, record: Any, _proxy: Any) -> None:
        configured, file = record.info.get(_RECORD_INFO_KEY, (None, None))
        if configured is driver_connection:
            if file is not None and not file.is_current():
                raise DisconnectionError("another file has taken the database's name")
            return
        connection = driver_connection.driver_connection
        file = await_only(run_on_thread(connection, partial(_set_up, connection, pragmas)))
        record.info[_RECORD_INFO_KEY] = (driver_connection, file)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        if options.get(DEFERRED_OPTION, False):
            connection.exec_driver_sql("BEGIN")
        else:
            begin_immediate_on(connection, busy_seconds)


def _set_up(connection: aiosqlite.Connection, pragmas: Sequence[str]) -> SqliteFile | None:
    """Set the pragmas on the connection's thread, and return its file.

    Through SQLAlchemy's cursor these are 14 hops between two threads. They took a fifth of a
    command's time in the database.
    """
    raw = sqlite3_connection(connection)
    raw.isolation_level = None
    for pragma in pragmas:
        raw.execute(pragma).close()
    return SqliteFile.of_connection(raw, immutable=read_only.is_immutable(connection))


def _pragmas(durability: Durability, busy_seconds: float) -> tuple[str, ...]:
    pragmas = (
        f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}",
        f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT_BYTES}",
        "PRAGMA foreign_keys = ON",
        f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}",
    )
    if durability == "full" and sys.platform == "darwin":
        # There fsync leaves the data in the drive's own cache, which a power loss empties. This
        # asks the drive to write it out, at the commit and at the checkpoint.
        pragmas += ("PRAGMA fullfsync = ON", "PRAGMA checkpoint_fullfsync = ON")
    return pragmas
