"""Connections to PostgreSQL that are kept at hand for single statements."""

from __future__ import annotations

import time
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.runner import Operation
from sessionsdb.engine.tasks import finish_before_cancel

T = TypeVar("T")

CACHED_CONNECTIONS = 6
"""How many connections are kept out of the pool for single statements."""

REPLAN_SECONDS = 2.0
REPLAN_STATEMENTS = 32
"""How long, and for how many statements at least, a plan is kept on a connection at hand.

Statements are planned once for a connection, and a plan that was made while a table was small walks
over all of it until autovacuum looks at it, a minute after it has grown. Measured, sends of 64 took
7 ms at 6,000 messages in a young inbox, and 4 ms planned anew. To plan one takes 3 ms, which a lone
caller, now and then, shall not pay each time.
"""

_REPLAN = text("DISCARD PLANS")


class _CachedConnection:
    """A connection, and the age of its plans."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._made_anew()

    def _made_anew(self) -> None:
        self._planned = time.monotonic()
        self._run = 0

    async def run(self, operation: Operation[T]) -> T:
        self._run += 1
        if self._run > REPLAN_STATEMENTS and time.monotonic() > self._planned + REPLAN_SECONDS:
            await self.connection.execute(_REPLAN)
            self._made_anew()
        return await self.connection.run_sync(operation)


class ConnectionCache:
    """Connections for single statements, a few of them kept between two uses.

    To take one out of the pool, set it to AUTOCOMMIT and give it back takes 60 to 110 µs, a fifth
    of a lone append.
    """

    def __init__(self, autocommit: AsyncEngine, most: int) -> None:
        self._autocommit = autocommit
        self._most = most
        self._kept: list[_CachedConnection] = []
        self._closed = False

    async def run(self, operation: Operation[T]) -> T:
        kept = (
            self._kept.pop() if self._kept else _CachedConnection(await self._autocommit.connect())
        )
        try:
            result = await kept.run(operation)
        except BaseException:  # it may be broken, or in the middle of something: the pool will see
            await finish_before_cancel(kept.connection.close())
            raise
        if len(self._kept) < self._most and not self._closed:
            self._kept.append(kept)
        else:
            await finish_before_cancel(kept.connection.close())
        return result

    async def evict_all(self) -> None:
        """Give all that are kept back to the pool, which knows how old they may be."""
        while self._kept:
            await finish_before_cancel(self._kept.pop().connection.close())

    def open(self) -> None:
        """Keep connections from now on."""
        self._closed = False

    async def close(self) -> None:
        """Keep none any more, nor those that are in use now."""
        self._closed = True
        await self.evict_all()
