"""PostgreSQL: single statements without a transaction around them, and transactions that are
repeated when the database asks for it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Generic, TypeVar
from uuid import uuid4

from sqlalchemy import NullPool, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sessionsdb.engine.runner import (
    ConnectionLost,
    Operation,
    Tasks,
    as_storage_error,
)
from sessionsdb.engine.sqlite import Durability
from sessionsdb.errors import InvalidArgument, StorageError

T = TypeVar("T")

TRIES = 6
"""How often an operation is begun when the database says: again."""

SETTLE_SECONDS = 30.0
"""How long a write whose answer was lost waits for the database to come back and say."""

# deadlock_detected, serialization_failure
_AGAIN = frozenset(("40P01", "40001"))

_FATE = text("SELECT pg_xact_status(CAST(:xid AS xid8))")
_XID = text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")


def create(url: URL, durability: Durability, *, transaction_pooler: bool = False) -> AsyncEngine:
    """An engine of our own. Behind a pooler that gives a connection for one transaction at a
    time nothing may be kept on a connection: no prepared statements, no settings."""
    if transaction_pooler:
        if durability != "full":
            raise InvalidArgument(
                'durability="normal" can\'t be set through a transaction pooler; set '
                "synchronous_commit for the role: ALTER ROLE … SET synchronous_commit = off"
            )
        return create_async_engine(
            url.update_query_dict({"prepared_statement_cache_size": "0"}),
            poolclass=NullPool,
            connect_args={
                "statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"__sessionsdb_{uuid4().hex}__",
            },
        )
    settings = {
        "application_name": "sessionsdb",
        # Our statements take arrays: planning them anew costs more than it finds.
        "plan_cache_mode": "force_generic_plan",
        "jit": "off",
    }
    if durability == "normal":
        settings["synchronous_commit"] = "off"
    return create_async_engine(
        url, pool_size=10, max_overflow=10, connect_args={"server_settings": settings}
    )


class PostgresRunner:
    """The runner of a PostgreSQL database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._tasks = Tasks()

    async def read(self, operation: Operation[T]) -> T:
        for last in _tries():
            try:
                return await self._run(operation)
            except (ConnectionLost, _Again) as error:
                if last:
                    raise _final(error) from error.__cause__
            await _pause()
        raise AssertionError("unreachable")

    async def statement(self, operation: Operation[T]) -> T:
        for last in _tries():
            try:
                return await self._tasks.finish(self._run(operation))
            except _Again as error:
                if last:
                    raise _final(error) from error.__cause__
            await _pause()
        raise AssertionError("unreachable")

    async def write(self, operation: Operation[T]) -> T:
        return await self._tasks.finish(self._transaction(operation))

    async def settle(self, operation: Operation[T]) -> T:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return await self.read(operation)
            except StorageError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        "the connection broke before the answer came, and the database has been "
                        f"out of reach for {SETTLE_SECONDS:.0f} s since: whether the write was "
                        "committed is unknown; read before you repeat it"
                    ) from error
            await _pause()

    async def close(self) -> None:
        await self._tasks.drain()

    async def _run(self, operation: Operation[T]) -> T:
        try:
            async with self._autocommit.connect() as connection:
                return await connection.run_sync(operation)
        except (SQLAlchemyError, OSError) as error:
            raise _translated(error) from error

    async def _transaction(self, operation: Operation[T]) -> T:
        for last in _tries():
            attempt: _Attempt[T] = _Attempt(operation)
            try:
                async with self.engine.connect() as connection:
                    await connection.run_sync(attempt.run)
                    attempt.committing = True
                    await connection.commit()
                return attempt.result
            except (SQLAlchemyError, OSError) as error:
                translated = _translated(error)
                if isinstance(translated, ConnectionLost):
                    if attempt.committing and await self._was_committed(attempt.xid):
                        return attempt.result
                elif not isinstance(translated, _Again):
                    raise translated from error
                if last:
                    raise _final(translated) from error
            await _pause()
        raise AssertionError("unreachable")

    async def _was_committed(self, xid: str | None) -> bool:
        """What became of a transaction whose commit was not answered."""
        if xid is None:
            return True  # it wrote nothing
        while True:
            fate = await self.settle(lambda c: c.execute(_FATE, {"xid": xid}).scalar())
            if fate != "in progress":
                return bool(fate == "committed")
            await _pause()


class _Attempt(Generic[T]):
    """One run of an operation in a transaction, and what is needed to ask about it later."""

    def __init__(self, operation: Operation[T]) -> None:
        self._operation = operation
        self.result: T
        self.xid: str | None = None
        self.committing = False

    def run(self, connection: Any) -> None:
        self.result = self._operation(connection)
        self.xid = connection.execute(_XID).scalar()


class _Again(StorageError):
    """The database rolled the operation back and asks for it to be repeated."""


def _translated(error: SQLAlchemyError | OSError) -> StorageError:
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        # Two sends of one idempotency key at once: the repetition finds the first one's row.
        raced = isinstance(error, IntegrityError) and "uq_" in str(error.orig)
        if state in _AGAIN or raced:
            return _Again(f"the database failed: {error.orig}")
    return as_storage_error(error)


def _final(error: StorageError) -> StorageError:
    return StorageError(str(error)) if isinstance(error, _Again) else error


def _tries() -> list[bool]:
    """One item a try; true for the last."""
    return [number == TRIES for number in range(1, TRIES + 1)]


async def _pause() -> None:
    await asyncio.sleep(random.uniform(0.005, 0.05))
