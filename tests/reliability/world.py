"""A database with a clock of the test, open by two handles as if by two processes.

SQLite takes its time from the handle. On PostgreSQL a listener of SQLAlchemy writes another schema
before the functions of the time: there they return the time of a table. Nothing sleeps. A lease
expires when the test sets the clock.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection, delete, event, update

from devtools.databases import Database
from sessionsdb import Limits, SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.schema import pieces, sessions
from tests.reliability import invariants, tables

T = TypeVar("T")

START = datetime(2030, 1, 1, tzinfo=UTC)

LIMITS = Limits(pending=4, depth=3, children=3, hops=3)

_VIRTUAL_CLOCK = """
    CREATE SCHEMA virtual;
    CREATE TABLE virtual.present (moment timestamptz NOT NULL);
    INSERT INTO virtual.present VALUES (now());
    CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS 'SELECT moment FROM virtual.present';
    CREATE FUNCTION virtual.statement_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS 'SELECT moment FROM virtual.present';
"""


_REAL_CLOCK = re.compile(r"\bpg_catalog\.(?=(?:clock|statement)_timestamp\()")


def _use_virtual_clock(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any
) -> tuple[str, Any]:
    return _REAL_CLOCK.sub("virtual.", statement), parameters


class World:
    """One database with its clock and its handles, for many histories."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = START
        self.handles: list[SessionsDB] = []
        self._loop = asyncio.Runner()
        self._clock: asyncpg.Connection | None = None

    def __enter__(self) -> World:
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    # ---- time ------------------------------------------------------------------------------------

    async def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        if self._clock is not None:
            await self._clock.execute("UPDATE virtual.present SET moment = $1", self.now)

    # ---- handles ---------------------------------------------------------------------------------

    async def reopen(self, number: int) -> None:
        """Close a handle and open it again, which clears its memory."""
        await self.handles[number].__aexit__(None, None, None)
        self.handles[number] = await self._opened()

    async def _open(self) -> None:
        if self.database.kind == "postgresql":
            self._clock = await self.database.connect_to_postgres()
            await self._clock.execute(_VIRTUAL_CLOCK)
            await self._clock.execute("SET synchronous_commit = off")
        await self.advance(0)
        self.handles = [await self._opened(), await self._opened()]

    async def _opened(self) -> SessionsDB:
        # Another test covers commits at a power failure.
        if self.database.kind == "sqlite":
            db = SessionsDB(
                self.database.url, limits=LIMITS, durability="normal", clock=lambda: self.now
            )
        else:
            db = SessionsDB(self.database.url, limits=LIMITS)
            event.listen(
                db.engine.sync_engine, "before_cursor_execute", _use_virtual_clock, retval=True
            )
        return await db.__aenter__()

    async def _close(self) -> None:
        for handle in self.handles:
            await handle.__aexit__(None, None, None)
        if self._clock is not None:
            await self._clock.close()

    # ---- looking and clearing --------------------------------------------------------------------

    async def look(self) -> tuple[tables.Picture, list[str]]:
        """The content of all tables, and the broken invariants."""
        return await open_database_of(self.handles[0]).runner.read(
            lambda connection: (tables.stored(connection), invariants.broken(connection))
        )

    async def clear(self) -> None:
        """Begin with empty tables."""

        def clear(connection: Connection) -> None:
            connection.execute(update(sessions).values(parent_id=None))
            connection.execute(delete(sessions))
            connection.execute(delete(pieces))

        await open_database_of(self.handles[0]).runner.write(clear)
