"""A connection to a SQLite file, with the thread that it lives on."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, StaticPool, create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.util.concurrency import greenlet_spawn

from sessionsdb.engine import urls
from sessionsdb.engine.sqlite import write_lock
from sessionsdb.engine.sqlite.clock import CLOCK_OPTION
from sessionsdb.engine.sqlite.database_file import SqliteFile
from sessionsdb.engine.sqlite.errors import (
    BROKEN_CONNECTION_CODES,
    primary_result_code,
    translate_errors,
)
from sessionsdb.engine.sqlite.read_only import is_immutable
from sessionsdb.engine.statement import close_cursor
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import StorageError
from sessionsdb.private_apis import run_on_thread, sqlite3_connection

log = logging.getLogger("sessionsdb.storage")

T = TypeVar("T")

Clock = Callable[[], datetime]


class SqliteConnection:
    """One connection with its thread, and an SQLAlchemy ``Connection`` for use on that thread.

    It is opened again before its next use when it can't be trusted any more. That is after an error
    that would stay with it, or when another file has taken the path of the database.
    """

    connection: Connection
    raw: sqlite3.Connection

    def __init__(
        self,
        engine: Engine,
        clock: Clock | None,
        prepare: Callable[[sqlite3.Connection], object],
        is_writer: bool,
    ) -> None:
        self.busy_seconds = urls.busy_seconds(engine.url)
        self._engine = engine
        self._clock = clock
        self._prepare = prepare
        self._is_writer = is_writer
        self._pooled: Connection | None = None
        self._driver: Any
        self._file: SqliteFile | None = None
        self._broken_by: BaseException | None = None

    @classmethod
    async def open(
        cls,
        engine: Engine,
        clock: Clock | None,
        prepare: Callable[[sqlite3.Connection], object],
        *,
        is_writer: bool = False,
    ) -> SqliteConnection:
        """Take a connection out of the engine's pool until ``close``.

        ``prepare`` is called on the connection's thread before any other use. A connection with
        ``is_writer`` waits for the lock in ``begin_immediate``, and SQLite itself does not wait.
        """
        connection = cls(engine, clock, prepare, is_writer)
        await connection._connect()
        return connection

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the connection's thread, in one hop.

        Work that has begun runs to its end, also when the caller is cancelled.
        """
        if self._broken_by is not None or not (self._file is None or self._file.is_current()):
            await finish_before_cancel(self._reopen())
        result: T = await run_on_thread(self._driver, work)
        return result

    async def settle(self) -> None:
        """Wait until the work of cancelled callers has ended."""
        await run_on_thread(self._driver, lambda: None)

    def mark_if_broken(self, error: BaseException) -> None:
        """Have the connection opened again if it may go on failing with this error."""
        cause = error.__cause__ or error
        if self._file is not None and primary_result_code(cause) in BROKEN_CONNECTION_CODES:
            self._broken_by = cause

    @property
    def is_distrusted(self) -> bool:
        """Whether the connection is opened again before its next use."""
        return self._broken_by is not None

    def distrust(self, error: BaseException) -> None:
        """Have the connection opened again before its next use."""
        self._broken_by = error

    def require_file(self) -> None:
        """Raise ``StorageError`` after a commit into a file that its path no longer leads to."""
        if self._file is not None:
            self._file.require_current()

    def require_openable(self) -> None:
        """Raise ``StorageError`` if the file is gone or must not be opened again."""
        if self._file is not None:
            self._file.require_openable()

    async def close(self) -> None:
        pooled, self._pooled = self._pooled, None
        if pooled is not None:
            await run_on_thread(self._driver, self._close_connection)
            if self._broken_by is not None:
                # It must not go back into the pool.
                await greenlet_spawn(pooled.invalidate)
            await greenlet_spawn(pooled.close)

    def _close_connection(self) -> None:
        close_cursor(self.connection)
        self.connection.close()
        if self._is_writer:
            write_lock.set_busy_seconds(self.raw, self.busy_seconds)

    async def _connect(self) -> None:
        with translate_errors():
            pooled = await greenlet_spawn(self._engine.connect)
            try:
                self._driver = pooled.connection.driver_connection
                await run_on_thread(self._driver, self._set_up)
            except BaseException:
                await greenlet_spawn(pooled.invalidate)
                await greenlet_spawn(pooled.close)
                raise
        self._pooled = pooled
        self._broken_by = None

    def _set_up(self) -> None:
        self.raw = sqlite3_connection(self._driver)
        self._prepare(self.raw)
        # The first read creates the -wal and -shm, whose identities `SqliteFile` notes.
        self.raw.execute("SELECT count(*) FROM sqlite_master").close()
        self._file = SqliteFile.of_connection(self.raw, immutable=is_immutable(self._driver))
        if self._is_writer:
            write_lock.set_busy_seconds(self.raw, 0)
        self.connection = _sqlalchemy_connection(self.raw, self._engine.url, self._clock)

    async def _reopen(self) -> None:
        self.require_openable()
        if self._broken_by is None:
            self._broken_by = StorageError("the file was changed or replaced")
        reason = self._broken_by
        await self.close()
        await self._connect()
        log.warning("a connection to the database was opened again: %s", reason)


def _sqlalchemy_connection(raw: sqlite3.Connection, url: URL, clock: Clock | None) -> Connection:
    """Return a synchronous ``Connection`` over a driver connection that it does not close."""
    engine: Engine = create_engine(
        url.set(drivername="sqlite"),
        creator=lambda: raw,
        poolclass=StaticPool,
        pool_reset_on_return=None,
    )
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
    if clock is not None:
        options[CLOCK_OPTION] = clock
    return engine.connect().execution_options(**options)
