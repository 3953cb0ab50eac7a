"""Run operations on SQLite: one writer that commits in groups, and a few readers.

Through SQLAlchemy's asyncio layer every statement crosses to the driver's thread and back several
times. A transaction of three statements took 2.2 ms, and 0.2 ms in one hop. So an operation runs
as a whole on the thread that aiosqlite keeps for its connection.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine

from sessionsdb.engine import urls
from sessionsdb.engine.batcher import Batcher
from sessionsdb.engine.runner import (
    ExecuteRequests,
    FindCommitted,
    NotOpen,
    Operation,
    Request,
    Result,
)
from sessionsdb.engine.sqlite import savepoint
from sessionsdb.engine.sqlite.connection import Clock, SqliteConnection
from sessionsdb.engine.sqlite.engine import READERS
from sessionsdb.engine.sqlite.errors import primary_result_code
from sessionsdb.engine.sqlite.read_only import is_read_only
from sessionsdb.engine.sqlite.reads import Readers
from sessionsdb.engine.sqlite.transaction import commit_group, commit_unsynced
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")

MAX_GROUP = 64
"""How many operations are committed in one transaction at most.

Measured with 64 concurrent saves and durability full: 3,300 a second in groups, 230 without.
"""


class _Unsynced:
    """An operation whose commit need not reach the disk."""

    def __init__(self, operation: Operation[Any]) -> None:
        self._operation = operation

    def __call__(self, connection: Connection) -> Any:
        return self._operation(connection)


class SqliteRunner:
    """The runner of a SQLite database."""

    has_one_writer = True

    # Two concurrent readers contend for Python's lock: 4,300 pages of 50 a second, and 8,600 with
    # one.
    parallel_batches = 1

    def __init__(self, engine: Engine, *, clock: Clock | None = None) -> None:
        self.engine = engine
        self._clock = clock
        self.in_memory = urls.is_in_memory(engine.url)
        self.sees_uncommitted = self.in_memory  # there is one connection
        self._busy_seconds = urls.busy_seconds(engine.url)
        self._connections: list[SqliteConnection] = []
        self._writer: SqliteConnection | None = None
        self._accepts_writes = False
        """Whether it is open, and no close has begun."""
        self._readers = self._new_readers([])
        self._writes: Batcher[Operation[Any], Any] = Batcher(
            self._commit_group, max_batch=MAX_GROUP
        )

    async def open(self) -> None:
        """Open the writer and the readers. A new file is created and set to WAL mode."""
        await finish_before_cancel(self._open())

    async def _open(self) -> None:
        # In memory no other process has a lock.
        writer = await self._open_and_keep(is_writer=not self.in_memory)
        # A database in memory lives in its one connection, so the writer reads too.
        readers = (
            [writer] if self.in_memory else [await self._open_and_keep() for _ in range(READERS)]
        )
        self._readers = self._new_readers(readers)
        self._writer = writer
        self._accepts_writes = True

    def _new_readers(self, connections: list[SqliteConnection]) -> Readers:
        return Readers(
            connections, in_memory=self.in_memory, is_open=lambda: self._writer is not None
        )

    async def _open_and_keep(self, *, is_writer: bool = False) -> SqliteConnection:
        connection = await self._open_connection(is_writer=is_writer)
        self._connections.append(connection)
        return connection

    async def _open_connection(self, *, is_writer: bool = False) -> SqliteConnection:
        prepare = partial(_switch_to_wal, busy_seconds=self._busy_seconds)
        return await SqliteConnection.open(self.engine, self._clock, prepare, is_writer=is_writer)

    async def open_connection(self) -> SqliteConnection:
        """Return a connection for the caller alone, who closes it."""
        self._require_open().require_openable()
        return await self._open_connection()

    def read(self, operation: Operation[T]) -> Coroutine[Any, Any, T]:
        self._require_open()
        return self._readers.run(operation)

    read_snapshot = read  # a read is a transaction: it sees all earlier commits

    async def write(self, operation: Operation[T]) -> T:
        self._require_accepts_writes()
        result: T = await self._writes.submit(operation)
        return result

    # The database is in this process: no answer can be lost, and a read sees every commit.
    write_autocommit = write
    write_repeatable = write
    read_durable = read

    async def write_unsynced(self, operation: Operation[T]) -> T:
        self._require_accepts_writes()
        result: T = await self._writes.submit(_Unsynced(operation))
        return result

    async def write_exactly_once(
        self,
        requests: list[Request],
        execute: ExecuteRequests[Request, Result],
        find_committed: FindCommitted[Request, Result],
    ) -> list[Result]:
        def operation(connection: Connection) -> list[Result]:
            return list(execute(connection, requests))

        return await self.write(operation)

    async def run_in_savepoint(self, connection: AsyncConnection, operation: Operation[T]) -> T:
        return await savepoint.run_in_savepoint(connection, operation)

    def writes_in_flight(self) -> None:
        """Return ``None``: the one writer runs writes in the order of their calls."""

    async def close(self) -> None:
        self._accepts_writes = False  # new ones would keep it open for ever
        await self._writes.drain()
        self._writer = None
        await self._readers.drain()
        connections, self._connections = self._connections, []
        for connection in connections:
            await connection.close()

    def _require_open(self) -> SqliteConnection:
        if self._writer is None:
            raise NotOpen
        return self._writer

    def _require_accepts_writes(self) -> None:
        if not self._accepts_writes:
            raise NotOpen

    async def _commit_group(self, operations: list[Operation[Any]]) -> Sequence[Any]:
        writer = self._writer
        assert writer is not None
        deadline = time.monotonic() + self._busy_seconds
        # Beside other writes it goes along in their transaction. Alone it waits for no disk, so a
        # write that comes now waits for a small transaction only.
        unsynced = type(operations[0]) is _Unsynced and all(
            type(operation) is _Unsynced for operation in operations
        )
        commit = commit_unsynced if unsynced else commit_group
        while True:
            results = await writer.run(partial(commit, writer, operations))
            if results is not None:
                return results
            # Only in memory, where a caller's transaction runs on the same connection.
            if time.monotonic() > deadline:
                raise StorageError(
                    f"another transaction was open on this connection for {self._busy_seconds:g} "
                    "s; commit it, or use a database file"
                )
            await asyncio.sleep(0.002)


def _switch_to_wal(raw: sqlite3.Connection, busy_seconds: float) -> None:
    """Set the file to WAL mode, which is a property of the file.

    A file that is read-only is read as it is. The switch needs an exclusive lock and does not wait
    for it. Two processes that open a new file
    at the same time retry here.
    """
    deadline = time.monotonic() + busy_seconds
    mode = raw.execute("PRAGMA journal_mode").fetchone()[0]
    while mode not in ("wal", "memory"):
        try:
            mode = raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if primary_result_code(error) == sqlite3.SQLITE_READONLY:
                return
            is_locked = primary_result_code(error) == sqlite3.SQLITE_BUSY
            if not is_locked or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))
        else:
            if mode != "wal":  # SQLite refuses without an error
                if is_read_only(raw):
                    return
                raise StorageError(
                    f"the database file can't be set to WAL mode and stays in mode {mode}: put it "
                    "on a local file system, and leave nolock and vfs out of the URL"
                )
