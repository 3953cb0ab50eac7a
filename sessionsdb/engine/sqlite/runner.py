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
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine import urls
from sessionsdb.engine.batcher import Batcher
from sessionsdb.engine.runner import NotOpen, Operation
from sessionsdb.engine.sqlite.connection import Clock, SqliteConnection
from sessionsdb.engine.sqlite.engine import (
    READERS,
)
from sessionsdb.engine.sqlite.error_hints import primary_result_code
from sessionsdb.engine.storage_errors import translate_errors
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import StorageError

T = TypeVar("T")


class SqliteRunner:
    """The runner of a SQLite database."""

    def __init__(self, engine: AsyncEngine, *, clock: Clock | None = None) -> None:
        self.engine = engine
        self._clock = clock
        self.in_memory = urls.in_memory(engine.url)
        self._busy_seconds = urls.busy_seconds(engine.url)
        self._connections: list[SqliteConnection] = []
        self._free: asyncio.Queue[SqliteConnection]
        self._writer: SqliteConnection | None = None
        self._writes: Batcher[Operation[Any], Any] = Batcher(self._commit_group, most=64)

    async def open(self) -> None:
        """Open the writer and the readers; the file is created, and switched to WAL."""
        self._free = asyncio.Queue()
        await finish_before_cancel(self._open())

    async def _open(self) -> None:
        writer = await self._open_and_keep()
        # A database in memory is its one connection: the writer reads too.
        for _ in range(0 if self.in_memory else READERS):
            self._free.put_nowait(await self._open_and_keep())
        if self.in_memory:
            self._free.put_nowait(writer)
        self._writer = writer

    async def _open_and_keep(self) -> SqliteConnection:
        lane = await self._opened()
        self._connections.append(lane)
        return lane

    async def _opened(self) -> SqliteConnection:
        begin = partial(_switch_to_wal, busy_seconds=self._busy_seconds)
        return await SqliteConnection.open(self.engine, self._clock, begin)

    async def open_connection(self) -> SqliteConnection:
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
    read_durable = read

    def in_flight(self) -> None:
        """There is one writer, and it makes writes in the order in which they were asked for."""

    async def close(self) -> None:
        await self._writes.drain()
        self._writer = None
        lanes, self._connections = self._connections, []
        for lane in lanes:
            await lane.close()

    def _require_open(self) -> SqliteConnection:
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


def _read(lane: SqliteConnection, operation: Operation[T], memory: bool) -> T:
    try:
        with translate_errors():
            if memory and lane.raw.in_transaction:  # a caller's own, on the one connection there is
                return operation(lane.connection)
            lane.raw.execute("BEGIN")
            try:
                return operation(lane.connection)
            finally:
                _roll_back(lane)
    except StorageError as error:
        lane.mark_if_broken(error)
        raise


def _commit_all(lane: SqliteConnection, operations: list[Operation[Any]]) -> list[Any] | None:
    """Run all in one transaction, each in a savepoint so that it can fail alone; their results or
    what they raised. ``None`` if somebody's transaction is open on this connection."""
    if lane.raw.in_transaction:
        return None
    if len(operations) == 1:
        return [_commit_one(lane, operations[0])]
    try:
        with translate_errors():
            lane.raw.execute("BEGIN IMMEDIATE")
    except StorageError as error:
        lane.mark_if_broken(error)
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


def _run_in_savepoint(lane: SqliteConnection, operation: Operation[Any]) -> Any:
    lane.raw.execute("SAVEPOINT operation")
    try:
        with translate_errors():
            result = operation(lane.connection)
    except Exception as error:
        lane.mark_if_broken(error)
        if not lane.raw.in_transaction:
            raise sqlite3.OperationalError("the transaction was rolled back") from error
        lane.raw.execute("ROLLBACK TO operation")
        result = error
    lane.raw.execute("RELEASE operation")
    return result


def _commit_one(lane: SqliteConnection, operation: Operation[Any]) -> Any:
    try:
        with translate_errors():
            lane.raw.execute("BEGIN IMMEDIATE")
            result = operation(lane.connection)
            lane.raw.execute("COMMIT")
            lane.connection.commit()
        lane.require_file()
        return result
    except Exception as error:
        lane.mark_if_broken(error)
        _roll_back(lane)
        return error


def _roll_back(lane: SqliteConnection) -> None:
    try:
        if lane.raw.in_transaction:
            lane.raw.execute("ROLLBACK")
    except sqlite3.Error as error:
        lane.mark_if_broken(error)  # closing the connection rolls back too
    lane.connection.rollback()


def _switch_to_wal(raw: sqlite3.Connection, busy_seconds: float) -> None:
    """WAL is a property of the file. The switch needs the file for itself and does not wait for
    it, so two processes that open a new file at once take turns here."""
    deadline = time.monotonic() + busy_seconds
    while raw.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", "memory"):
        try:
            raw.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            locked = primary_result_code(error) == sqlite3.SQLITE_BUSY
            if not locked or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))
