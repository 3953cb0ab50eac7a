"""A lane: a connection to a SQLite file, with the thread it lives on."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, StaticPool, create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.sqlite.clock import CLOCK_OPTION
from sessionsdb.engine.sqlite.database_file import SqliteFile
from sessionsdb.engine.sqlite.error_hints import BROKEN_CONNECTION_CODES, primary_result_code
from sessionsdb.engine.statement import close_cursor
from sessionsdb.engine.storage_errors import translate_errors
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import StorageError

log = logging.getLogger("sessionsdb.storage")

T = TypeVar("T")

Clock = Callable[[], datetime]


class SqliteConnection:
    """One connection with the thread it lives on, and an SQLAlchemy ``Connection`` to use there.

    It is opened anew, at its next use, when its connection can't be trusted any more: after an
    error that would stay with it, or when another file has taken the database's name.
    """

    connection: Connection
    raw: sqlite3.Connection

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock | None,
        begin: Callable[[sqlite3.Connection], object],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._begin = begin
        self._held: AsyncConnection | None = None
        self._driver: Any
        self._file: SqliteFile | None = None
        self._broken: BaseException | None = None

    @classmethod
    async def open(
        cls,
        engine: AsyncEngine,
        clock: Clock | None,
        begin: Callable[[sqlite3.Connection], object],
    ) -> SqliteConnection:
        """Take a connection out of the engine's pool, for as long as the lane is open. ``begin``
        is the first that is done with it."""
        lane = cls(engine, clock, begin)
        await lane._connect()
        return lane

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the lane's thread: one hop. What is begun there is carried to its end,
        also when the caller is cancelled."""
        if self._broken is not None or not (self._file is None or self._file.in_place()):
            await finish_before_cancel(self._renew())
        result: T = await self._driver._execute(work)
        return result

    def mark_if_broken(self, error: BaseException) -> None:
        """Have it opened anew if the connection may go on failing as it did now."""
        cause = error.__cause__ or error
        if self._file is not None and primary_result_code(cause) in BROKEN_CONNECTION_CODES:
            self._broken = cause

    def require_file(self) -> None:
        """After a commit. Raises ``StorageError`` if it went into a file that has lost its name."""
        if self._file is not None:
            self._file.require_in_place()

    def require_openable(self) -> None:
        """Raises ``StorageError`` if the file is gone or may not be opened again."""
        if self._file is not None:
            self._file.require_openable()

    async def close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await self._driver._execute(self._close_connection)
            if self._broken is not None:
                await held.invalidate()  # not back into the pool
            await held.close()

    def _close_connection(self) -> None:
        close_cursor(self.connection)
        self.connection.close()

    async def _connect(self) -> None:
        with translate_errors():
            held = await self._engine.connect()
            try:
                self._driver = (await held.get_raw_connection()).driver_connection
                await self._driver._execute(self._set_up)
            except BaseException:
                await held.invalidate()
                await held.close()
                raise
        self._held = held
        self._broken = None

    def _set_up(self) -> None:
        self.raw = self._driver._conn
        self._begin(self.raw)
        self.raw.execute("SELECT count(*) FROM sqlite_master").close()  # now the log is there too
        self._file = SqliteFile.behind(self.raw)
        self.connection = _sqlalchemy_connection(self.raw, self._engine.url, self._clock)

    async def _renew(self) -> None:
        self.require_openable()
        if self._broken is None:
            self._broken = StorageError("another file has taken its name")
        why = self._broken
        await self.close()
        await self._connect()
        log.warning("a connection to the database was opened again: %s", why)


def _sqlalchemy_connection(raw: sqlite3.Connection, url: URL, clock: Clock | None) -> Connection:
    """A synchronous ``Connection`` over a driver connection that somebody else owns."""
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
