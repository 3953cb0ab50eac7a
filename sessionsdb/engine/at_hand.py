"""Connections to PostgreSQL that are kept at hand for single statements."""

from __future__ import annotations

import time
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.runner import Operation, to_its_end

T = TypeVar("T")

AT_HAND = 4
"""How many connections are kept out of the pool for single statements."""

REPLAN_SECONDS = 2.0
"""How long a plan is kept on a connection at hand.

Statements are planned once for a connection, and a plan that was made while a table was small walks
over all of it until autovacuum looks at it, a minute after it has grown. Measured, sends of 64 took
7 ms at 6,000 messages in a young inbox, and 4 ms planned anew. To plan one takes 3 ms.
"""

_REPLAN = text("DISCARD PLANS")


class AtHand:
    """Connections for single statements, a few of them kept between two uses.

    To take one out of the pool, set it to AUTOCOMMIT and give it back takes 60 to 110 µs, a fifth
    of a lone append.
    """

    def __init__(self, autocommit: AsyncEngine, most: int) -> None:
        self._autocommit = autocommit
        self._most = most
        self._kept: list[tuple[AsyncConnection, float]] = []

    async def run(self, operation: Operation[T]) -> T:
        connection, planned = await self._taken()
        try:
            if self._most and time.monotonic() > planned + REPLAN_SECONDS:
                await connection.execute(_REPLAN)
                planned = time.monotonic()
            result = await connection.run_sync(operation)
        except BaseException:  # it may be broken, or in the middle of something: the pool will see
            await to_its_end(connection.close())
            raise
        if len(self._kept) < self._most:
            self._kept.append((connection, planned))
        else:
            await to_its_end(connection.close())
        return result

    async def put_away(self) -> None:
        """Give all that are kept back to the pool, which knows how old they may be."""
        while self._kept:
            connection, _ = self._kept.pop()
            await to_its_end(connection.close())

    async def _taken(self) -> tuple[AsyncConnection, float]:
        if self._kept:
            return self._kept.pop()
        return await self._autocommit.connect(), time.monotonic()
