"""Keep connections to PostgreSQL out of the pool, for single statements and for transactions."""

from __future__ import annotations

import time
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.postgresql.operation_greenlet import OperationGreenlet
from sessionsdb.engine.runner import Operation
from sessionsdb.engine.tasks import finish_before_cancel

T = TypeVar("T")

CACHED_CONNECTIONS = 6
"""How many connections are kept out of the pool for single statements."""

CACHED_TRANSACTIONS = 4
"""How many connections are kept out of the pool for transactions. Half of its 20 connections are
left for all other uses."""

REPLAN_SECONDS = 2.0
REPLAN_STATEMENTS = 32
"""A connection drops its plans after this many seconds and more than this many statements.

PostgreSQL plans a statement once for a connection. A plan made while a table was small scans the
whole table until autovacuum analyses it, a minute after it has grown. Measured with sends of 64 and
6,000 messages in a young inbox: 7 ms with the old plan, 4 ms with a new one. A new plan takes 3 ms.
The number of statements keeps that cost away from a lone caller who sends now and then.
"""

_DISCARD_PLANS = text("DISCARD PLANS")


class _CachedConnection:
    """A connection, with the greenlet of its operations and the age of its plans."""

    def __init__(self, connection: AsyncConnection, *, replans: bool) -> None:
        assert connection.sync_connection is not None
        self.connection = connection
        self._sync_connection = connection.sync_connection
        self._greenlet = OperationGreenlet()
        self._replans = replans
        self._reset_plan_age()

    def _reset_plan_age(self) -> None:
        self._planned_at = time.monotonic()
        self._statements = 0

    async def run(self, operation: Operation[T]) -> T:
        self._statements += 1
        if (
            self._replans
            and self._statements > REPLAN_STATEMENTS
            and time.monotonic() > self._planned_at + REPLAN_SECONDS
        ):
            await self.connection.execute(_DISCARD_PLANS)
            self._reset_plan_age()
        return await self._greenlet.run(operation, self._sync_connection)


class ConnectionCache:
    """Connections of one isolation level, a few of them kept between two uses.

    Each use of a pooled connection costs 60 to 110 µs, a fifth of a lone append: it is taken out,
    set to AUTOCOMMIT, and returned.
    """

    def __init__(
        self, engine: AsyncEngine, max_connections: int, *, autocommit: bool = False
    ) -> None:
        """With ``autocommit`` new connections are set to it. Kept ones make plans again now and
        then.

        An option of the engine would set it by an event. Each statement would look for listeners
        then, which takes 3 µs instead of 0.2.
        """
        self._engine = engine
        self._max_connections = max_connections
        self._autocommit = autocommit
        self._idle: list[_CachedConnection] = []
        self._is_closed = False

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation on an idle connection, or on a new one from the pool."""
        if self._idle:
            cached = self._idle.pop()
        else:
            connection = await self._engine.connect()
            if self._autocommit:
                operation = partial(_run_in_autocommit, operation=operation)
            if not self._max_connections:
                return await _run_once(connection, operation)
            cached = _CachedConnection(connection, replans=self._autocommit)
        try:
            result = await cached.run(operation)
        except BaseException:  # the connection may be broken or busy: the pool checks that
            await finish_before_cancel(cached.connection.close())
            raise
        if len(self._idle) < self._max_connections and not self._is_closed:
            self._idle.append(cached)
        else:
            await finish_before_cancel(cached.connection.close())
        return result

    async def evict_all(self) -> None:
        """Return all idle connections to the pool, which invalidates those that are too old."""
        while self._idle:
            await finish_before_cancel(self._idle.pop().connection.close())

    def open(self) -> None:
        """Keep idle connections from now on."""
        self._is_closed = False

    async def close(self) -> None:
        """Return idle connections to the pool, and from now on each one after its use."""
        self._is_closed = True
        await self.evict_all()


def _run_in_autocommit(connection: Connection, operation: Operation[T]) -> T:
    connection.execution_options(isolation_level="AUTOCOMMIT")
    return operation(connection)


async def _run_once(connection: AsyncConnection, operation: Operation[T]) -> T:
    """Run an operation on a connection that is not kept. One use of a greenlet is cheaper so."""
    try:
        return await connection.run_sync(operation)
    finally:
        await finish_before_cancel(connection.close())
