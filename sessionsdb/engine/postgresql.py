"""PostgreSQL: single statements without a transaction around them, and transactions that are
repeated when the database asks for it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from functools import partial
from typing import Any, Generic, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, NullPool, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from sessionsdb.engine.hosts import Hosts
from sessionsdb.engine.runner import (
    ConnectionLost,
    NotOpen,
    Operation,
    Tasks,
    as_storage_error,
    driver_error,
    pause_after,
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

# insufficient_privilege
_NOT_ALLOWED = "42501"

# Ends what a broken connection may have left running, and says whether it is gone.
_END = text("""
    SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
    WHERE pid = :pid AND pid <> pg_backend_pid()
      AND usename = current_user AND datname = current_database()
""")

_FATE = text("SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8))")
_XID = text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")


def create(url: URL, durability: Durability, *, transaction_pooler: bool = False) -> AsyncEngine:
    """An engine of our own. Behind a pooler that gives a connection for one transaction at a
    time nothing may be kept on a connection: no prepared statements, no settings."""
    connect: dict[str, Any] = {"async_creator_fn": Hosts().connect}
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
                **connect,
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
        url,
        pool_size=10,
        max_overflow=10,
        connect_args={"server_settings": settings, **connect},
    )


class PostgresRunner:
    """The runner of a PostgreSQL database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._tasks = Tasks()
        self._opened = False

    async def open(self) -> None:
        self._opened = True

    async def read(self, operation: Operation[T]) -> T:
        self._require_open()
        for last in _tries():
            try:
                return await self._run(operation)
            except (ConnectionLost, _Again) as error:
                if last:
                    raise _final(error) from error.__cause__
            await _pause()
        raise AssertionError("unreachable")

    async def statement(self, operation: Operation[T]) -> T:
        self._require_open()
        for last in _tries():
            try:
                return await self._tasks.finish(self._statement(operation))
            except _Again as error:
                if last:
                    raise _final(error) from error.__cause__
            await _pause()
        raise AssertionError("unreachable")

    async def write(self, operation: Operation[T]) -> T:
        self._require_open()
        return await self._tasks.finish(self._transaction(operation))

    async def settle(self, operation: Operation[T]) -> T:
        deadline = time.monotonic() + SETTLE_SECONDS
        for failures in itertools.count(1):
            try:
                return await self.read(operation)
            except StorageError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        "the connection broke before the answer came, and the database has been "
                        f"out of reach for {SETTLE_SECONDS:.0f} s since: whether the write was "
                        "committed is unknown; read before you repeat it"
                    ) from error.__cause__
            await asyncio.sleep(pause_after(failures, first=0.02, most=1.0))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._tasks.drain()
        self._opened = False

    def _require_open(self) -> None:
        if not self._opened:
            raise NotOpen

    async def _run(self, operation: Operation[T], backend: _Backend | None = None) -> T:
        try:
            async with self._autocommit.connect() as connection:
                if backend is not None:
                    await backend.note(connection)
                return await connection.run_sync(operation)
        except (SQLAlchemyError, OSError) as error:
            raise _translated(error) from driver_error(error)

    async def _statement(self, operation: Operation[T]) -> T:
        backend = _Backend()
        try:
            return await self._run(operation, backend)
        except ConnectionLost:
            await self._end(backend)
            raise

    async def _end(self, backend: _Backend) -> None:
        """See to it that what was sent over a broken connection runs no more.

        The server learns that a client is gone when it next speaks to it. Until then a statement
        that waits for a lock goes on, and would commit after it was looked for in vain and made
        again.
        """
        while backend.pid is not None:
            ended = await self.settle(partial(_ended, pid=backend.pid))
            if ended:
                return
            await _pause()

    async def _transaction(self, operation: Operation[T]) -> T:
        for last in _tries():
            attempt: _Attempt[T] = _Attempt(operation)
            backend = _Backend()
            try:
                async with self.engine.connect() as connection:
                    await backend.note(connection)
                    await connection.run_sync(attempt.run)
                    attempt.committing = True
                    await connection.commit()
                return attempt.result
            except (SQLAlchemyError, OSError) as error:
                translated = _translated(error)
                if isinstance(translated, ConnectionLost):
                    await self._end(backend)
                    if attempt.committing and await self._was_committed(attempt.xid):
                        return attempt.result
                elif not isinstance(translated, _Again):
                    raise translated from driver_error(error)
                if last:
                    raise _final(translated) from driver_error(error)
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


class _Backend:
    """The server's process behind a connection, to be ended if the connection breaks.

    Behind a pooler the number means nothing, and no process of ours has it.
    """

    def __init__(self) -> None:
        self.pid: int | None = None

    async def note(self, connection: AsyncConnection) -> None:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        self.pid = driver.get_server_pid()


def _ended(connection: Connection, pid: int) -> bool:
    try:
        return connection.execute(_END, {"pid": pid}).scalar() is not False
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED:
            return True  # a server that forbids it: then all that can be done is to look
        raise


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


def is_key_race(error: BaseException) -> bool:
    """Whether two writes of one idempotency key met: the repetition finds the first one's row."""
    return isinstance(error, IntegrityError) and "uq_" in str(error.orig)


def _translated(error: SQLAlchemyError | OSError) -> StorageError:
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        if state in _AGAIN or is_key_race(error):
            return _Again(f"the database failed: {error.orig}")
    return as_storage_error(error)


def _final(error: StorageError) -> StorageError:
    return StorageError(str(error)) if isinstance(error, _Again) else error


def _tries() -> list[bool]:
    """One item a try; true for the last."""
    return [number == TRIES for number in range(1, TRIES + 1)]


async def _pause() -> None:
    await asyncio.sleep(random.uniform(0.005, 0.05))
