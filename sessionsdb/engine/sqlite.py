"""SQLite: one writer that commits in groups, a few readers, each an operation a thread hop.

Through SQLAlchemy's asyncio layer every statement crosses to the driver's thread and back
several times: a transaction of three statements took 2.2 ms, the same in one hop 0.2 ms. So an
operation runs as a whole on the thread that aiosqlite keeps for its connection.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import aiosqlite
from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sessionsdb.engine import urls
from sessionsdb.engine.advice import primary_code
from sessionsdb.engine.coalescer import Coalescer
from sessionsdb.engine.lane import Clock, Lane
from sessionsdb.engine.runner import NotOpen, Operation, storage_errors, to_its_end
from sessionsdb.engine.sqlite_file import SqliteFile
from sessionsdb.errors import StorageError

T = TypeVar("T")

Durability = Literal["full", "normal"]

READERS = 2

LOG_BYTES = 16 * 1024 * 1024
"""What a log is cut to that grew while somebody read for long; it is 4 MB when nobody does."""

DEFERRED_OPTION = "sessionsdb_begin_deferred"
"""Execution option for a caller's own connection: begin a transaction that only reads."""


def create(url: URL) -> AsyncEngine:
    """An engine of our own."""
    connect: dict[str, Any] = {"async_creator_fn": _connect}
    if urls.in_memory(url):
        return create_async_engine(url, connect_args=connect)
    return create_async_engine(url, connect_args=connect, pool_size=READERS + 3, max_overflow=10)


async def _connect(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    """Connect as SQLAlchemy does. When that fails, wait for the connection's thread: it still
    has to answer to this event loop, and prints a traceback if the loop is closed by then."""
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True
    try:
        return await connection
    except BaseException:
        await asyncio.to_thread(connection._thread.join)
        raise


def prepare(engine: AsyncEngine, durability: Durability) -> None:
    """Give every connection of the engine what correctness needs, also those already open.

    Transactions begin IMMEDIATE: one that reads first and writes later would fail at once when
    another has written in between, whatever the busy timeout.
    """
    sync_engine = engine.sync_engine
    if getattr(sync_engine, "_sessionsdb_prepared", None) is not None:
        return
    sync_engine._sessionsdb_prepared = durability  # type: ignore[attr-defined]

    pragmas = _pragmas(durability, urls.busy_seconds(engine.url))

    @event.listens_for(sync_engine, "checkout")
    def _configure(driver_connection: Any, record: Any, _proxy: Any) -> None:
        configured, file = record.info.get("sessionsdb", (None, None))
        if configured is driver_connection:
            if file is not None and not file.in_place():
                raise DisconnectionError("another file has taken the database's name")
            return
        driver_connection.isolation_level = None
        cursor = driver_connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()
        file = SqliteFile.behind(driver_connection)
        record.info["sessionsdb"] = (driver_connection, file)

    @event.listens_for(sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        deferred = options.get(DEFERRED_OPTION, False)
        connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")


def _pragmas(durability: Durability, busy_seconds: float) -> tuple[str, ...]:
    return (
        f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}",
        f"PRAGMA journal_size_limit = {LOG_BYTES}",
        "PRAGMA foreign_keys = ON",
        f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}",
    )


class SqliteRunner:
    """The runner of a SQLite database."""

    def __init__(self, engine: AsyncEngine, *, clock: Clock | None = None) -> None:
        self.engine = engine
        self._clock = clock
        self.in_memory = urls.in_memory(engine.url)
        self._busy_seconds = urls.busy_seconds(engine.url)
        self._lanes: list[Lane] = []
        self._free: asyncio.Queue[Lane]
        self._writer: Lane | None = None
        self._writes: Coalescer[Operation[Any], Any] = Coalescer(self._commit_group, most=64)

    async def open(self) -> None:
        """Open the writer and the readers; the file is created, and switched to WAL."""
        self._free = asyncio.Queue()
        await to_its_end(self._open())

    async def _open(self) -> None:
        writer = await self._lane()
        # A database in memory is its one connection: the writer reads too.
        for _ in range(0 if self.in_memory else READERS):
            self._free.put_nowait(await self._lane())
        if self.in_memory:
            self._free.put_nowait(writer)
        self._writer = writer

    async def _lane(self) -> Lane:
        lane = await self._opened()
        self._lanes.append(lane)
        return lane

    async def _opened(self) -> Lane:
        begin = partial(_switch_to_wal, busy_seconds=self._busy_seconds)
        return await Lane.open(self.engine, self._clock, begin)

    async def open_lane(self) -> Lane:
        """A connection for somebody's own use: the caller closes it."""
        self._require_open().require_openable()
        return await self._opened()

    async def read(self, operation: Operation[T]) -> T:
        self._require_open()
        lane = await self._free.get()
        try:
            self._require_open()  # still
            return await lane.run(partial(_read, lane, operation, self.in_memory))
        finally:
            self._free.put_nowait(lane)

    async def write(self, operation: Operation[T]) -> T:
        self._require_open()
        result: T = await self._writes.submit(operation)
        return result

    statement = write
    settle = read

    def rest(self) -> None:
        """There is one writer, and it makes writes in the order in which they were asked for."""

    async def close(self) -> None:
        await self._writes.drain()
        self._writer = None
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            await lane.close()

    def _require_open(self) -> Lane:
        if self._writer is None:
            raise NotOpen
        return self._writer

    async def _commit_group(self, operations: list[Operation[Any]]) -> Sequence[Any]:
        writer = self._writer
        assert writer is not None
        deadline = time.monotonic() + self._busy_seconds
        while True:
            results = await writer.run(partial(_commit_all, writer, operations))
            if results is not None:
                return results
            # Only in memory, where a caller's transaction is on this very connection.
            if time.monotonic() > deadline:
                raise StorageError(
                    f"another transaction was open on this connection for {self._busy_seconds:g} "
                    "s; commit it, or use a database file"
                )
            await asyncio.sleep(0.002)


def _read(lane: Lane, operation: Operation[T], memory: bool) -> T:
    try:
        with storage_errors():
            if memory and lane.raw.in_transaction:  # a caller's own, on the one connection there is
                return operation(lane.connection)
            lane.raw.execute("BEGIN")
            try:
                return operation(lane.connection)
            finally:
                _roll_back(lane)
    except StorageError as error:
        lane.heed(error)
        raise


def _commit_all(lane: Lane, operations: list[Operation[Any]]) -> list[Any] | None:
    """Run all in one transaction, each in a savepoint so that it can fail alone; their results or
    what they raised. ``None`` if somebody's transaction is open on this connection."""
    if lane.raw.in_transaction:
        return None
    if len(operations) == 1:
        return [_commit_one(lane, operations[0])]
    try:
        with storage_errors():
            lane.raw.execute("BEGIN IMMEDIATE")
    except StorageError as error:
        lane.heed(error)
        return [error] * len(operations)  # it waited for the lock once, and that was long
    try:
        results = [_run_in_savepoint(lane, operation) for operation in operations]
        lane.raw.execute("COMMIT")
        lane.connection.commit()
    except sqlite3.Error:
        # The transaction is gone, with what had succeeded in it: each gets its own verdict.
        _roll_back(lane)
        return [_commit_one(lane, operation) for operation in operations]
    try:
        lane.require_file()
    except StorageError as error:
        return [error] * len(operations)
    return results


def _run_in_savepoint(lane: Lane, operation: Operation[Any]) -> Any:
    lane.raw.execute("SAVEPOINT operation")
    try:
        with storage_errors():
            result = operation(lane.connection)
    except Exception as error:
        lane.heed(error)
        if not lane.raw.in_transaction:
            raise sqlite3.OperationalError("the transaction was rolled back") from error
        lane.raw.execute("ROLLBACK TO operation")
        result = error
    lane.raw.execute("RELEASE operation")
    return result


def _commit_one(lane: Lane, operation: Operation[Any]) -> Any:
    try:
        with storage_errors():
            lane.raw.execute("BEGIN IMMEDIATE")
            result = operation(lane.connection)
            lane.raw.execute("COMMIT")
            lane.connection.commit()
        lane.require_file()
        return result
    except Exception as error:
        lane.heed(error)
        _roll_back(lane)
        return error


def _roll_back(lane: Lane) -> None:
    try:
        if lane.raw.in_transaction:
            lane.raw.execute("ROLLBACK")
    except sqlite3.Error as error:
        lane.heed(error)  # closing the connection rolls back too
    lane.connection.rollback()


def _switch_to_wal(raw: sqlite3.Connection, busy_seconds: float) -> None:
    """WAL is a property of the file. The switch needs the file for itself and does not wait for
    it, so two processes that open a new file at once take turns here."""
    deadline = time.monotonic() + busy_seconds
    while raw.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        try:
            raw.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            locked = primary_code(error) == sqlite3.SQLITE_BUSY
            if not locked or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))
