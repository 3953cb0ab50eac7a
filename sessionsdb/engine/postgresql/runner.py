"""PostgreSQL: single statements without a transaction around them, and transactions that are
repeated when the database asks for it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine.postgresql import commit_status, failover
from sessionsdb.engine.postgresql.connection_cache import CACHED_CONNECTIONS, ConnectionCache
from sessionsdb.engine.runner import NotOpen, Operation
from sessionsdb.engine.storage_errors import (
    ConnectionLost,
    StatementRefused,
    as_storage_error,
    driver_error,
)
from sessionsdb.engine.tasks import TaskGroup, backoff_seconds
from sessionsdb.errors import StorageError

T = TypeVar("T")

MAX_TRIES = 6
"""How often an operation is begun when the database says: again."""

RECOVERY_SECONDS = 30.0
"""How long a write whose answer was lost waits for the database to come back and say."""

# deadlock_detected, serialization_failure
_RETRY_SQLSTATES = frozenset(("40P01", "40001"))

# read_only_sql_transaction: it is a standby
_READ_ONLY_SQLSTATE = "25006"

# invalid_parameter_value, of a transaction that this server has not come to
_XID_IN_FUTURE_SQLSTATE = "22023"

_OWN_OPTION = "sessionsdb"
"""The execution option that tells our use of an engine from its owner's."""


class PostgresRunner:
    """The runner of a PostgreSQL database."""

    def __init__(
        self, engine: AsyncEngine, *, transaction_pooler: bool = False, own_engine: bool = False
    ) -> None:
        self.engine = engine
        self._ours = engine.execution_options(**{_OWN_OPTION: True})
        autocommit = self._ours.execution_options(isolation_level="AUTOCOMMIT")
        most = CACHED_CONNECTIONS if own_engine else 0  # nothing is kept of a pool that others need
        self._connection_cache = ConnectionCache(autocommit, most)
        self._transaction_pooler = transaction_pooler
        if not event.contains(engine.sync_engine, "handle_error", _drop_standby_connections):
            event.listen(engine.sync_engine, "handle_error", _drop_standby_connections)
        self._hosts = failover.hosts_of(engine)
        self._looking: asyncio.Task[Any] | None = None
        self._tasks = TaskGroup()
        self._opened = False

    async def open(self) -> None:
        self._connection_cache.open()
        self._opened = True

    async def read(self, operation: Operation[T]) -> T:
        self._require_open()
        for last in _tries():
            try:
                return await self._run(operation)
            except (ConnectionLost, RetryTransaction) as error:
                if last:
                    raise _without_retry(error) from error.__cause__
            await _pause()
        raise AssertionError("unreachable")

    async def statement(self, operation: Operation[T]) -> T:
        self._require_open()
        for last in _tries():
            try:
                return await self._tasks.finish(self._statement(operation))
            except RetryTransaction as error:
                if last:
                    raise _without_retry(error) from error.__cause__
            await _pause()
        raise AssertionError("unreachable")

    async def write(self, operation: Operation[T]) -> T:
        self._require_open()
        return await self._tasks.finish(self._transaction(operation))

    async def read_durable(self, operation: Operation[T]) -> T:
        return await self._ask(partial(commit_status.read_durable, operation=operation))

    def in_flight(self) -> asyncio.Future[Any] | None:
        return self._tasks.in_flight()

    async def _ask(self, operation: Operation[T]) -> T:
        """Ask the primary, with patience."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        for failures in itertools.count(1):
            try:
                return await self.read(partial(commit_status.read_on_primary, operation=operation))
            except StatementRefused:
                raise  # an answer
            except StorageError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        "the connection broke before the answer came, and the database has been "
                        f"out of reach for {RECOVERY_SECONDS:.0f} s since: {_UNKNOWN_RESULT}"
                    ) from error.__cause__
            await asyncio.sleep(backoff_seconds(failures, first=0.02, most=1.0))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._tasks.drain()
        await self._connection_cache.close()
        self._opened = False

    def _require_open(self) -> None:
        if not self._opened:
            raise NotOpen

    async def _run(self, operation: Operation[T]) -> T:
        try:
            with self._patience():
                if not self._transaction_pooler:
                    return await self._connection_cache.run(operation)
                # The driver prepares a statement and then executes it: between the two a pooler
                # may give us another connection, except within a transaction.
                async with self._ours.begin() as connection:
                    return await connection.run_sync(operation)
        except (SQLAlchemyError, OSError) as error:
            translated = _translate(error)
            if isinstance(translated, ConnectionLost):
                await self._connection_cache.evict_all()
            raise translated from driver_error(error)

    def _patience(self) -> AbstractContextManager[object]:
        """An answer may take as long as it likes from the primary, but not from what was one."""
        if self._hosts is None or not self._hosts.can_move:
            return _NO_TIMER
        return _RepeatingTimer(failover.LOOK_AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if self._hosts is not None and (self._looking is None or self._looking.done()):
            self._looking = self._tasks.start(self._hosts.look_again())

    async def _statement(self, operation: Operation[T]) -> T:
        if self._transaction_pooler:
            return await self._run(operation)
        backend = commit_status.ServerProcess()
        try:
            return await self._run(partial(backend.run, operation=operation))
        except ConnectionLost:
            await self._end(backend)
            raise

    async def _end(self, backend: commit_status.ServerProcess) -> None:
        """See to it that what was sent over a broken connection runs no more.

        The server learns that a client is gone when it next speaks to it. Until then a statement
        that waits for a lock goes on, and would commit after it was looked for in vain and made
        again. Behind a transaction pooler nobody knows whose process it is by now.
        """
        while backend.who is not None and not self._transaction_pooler:
            if await self._ask(partial(commit_status.terminate_backend, who=backend.who)):
                return
            await _pause()

    async def _transaction(self, operation: Operation[T]) -> T:
        for last in _tries():
            attempt: commit_status.CommitAttempt[T] = commit_status.CommitAttempt(operation)
            try:
                with self._patience():
                    async with self._ours.connect() as connection:
                        await connection.begin()  # also for what goes to the driver as it stands
                        await connection.run_sync(attempt.run)
                        attempt.committing = True
                        await connection.commit()
                return attempt.result
            except (SQLAlchemyError, OSError) as error:
                translated = _translate(error)
                if isinstance(translated, ConnectionLost):
                    await self._end(attempt.backend)
                    if attempt.committing and await self._was_committed(attempt):
                        return attempt.result
                elif not isinstance(translated, RetryTransaction):
                    raise translated from driver_error(error)
                if last:
                    raise _without_retry(translated) from driver_error(error)
            await _pause()
        raise AssertionError("unreachable")

    async def _was_committed(self, attempt: commit_status.CommitAttempt[T]) -> bool:
        """What became of a transaction whose commit was not answered.

        Its number says so within one run of the server. After a crash or a failover the number may
        have been given again, if what was done under it first never reached the disk or the
        standby: then "committed" may be said of somebody else's.
        """
        if attempt.xid is None:
            return True  # it wrote nothing
        for failures in itertools.count(1):
            try:
                said, run = await self.read_durable(
                    partial(commit_status.transaction_status, xid=attempt.xid)
                )
            except StatementRefused as error:
                if getattr(error.__cause__, "sqlstate", None) == _XID_IN_FUTURE_SQLSTATE:
                    return False  # what it did never came to this server
                raise
            if said == "aborted":
                return False
            if said == "committed" and attempt.backend.ran_in(run):
                return True
            if said != "in progress":
                raise StorageError(
                    "the server restarted or failed over before it answered a commit: "
                    + _UNKNOWN_RESULT
                )
            await asyncio.sleep(backoff_seconds(failures, first=0.02, most=1.0))
        raise AssertionError("unreachable")


_UNKNOWN_RESULT = "whether the write was committed is unknown; read before you repeat it"


_NO_TIMER = nullcontext()


class _RepeatingTimer:
    """Calls ``ring`` every so many seconds, while the block runs."""

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self._seconds = seconds
        self._ring = ring

    def __enter__(self) -> None:
        self._next = asyncio.get_running_loop().call_later(self._seconds, self._rung)

    def __exit__(self, *_: object) -> None:
        self._next.cancel()

    def _rung(self) -> None:
        self._ring()
        self.__enter__()


def _drop_standby_connections(context: ExceptionContext) -> None:
    """Let go of all connections when one turns out to lead to a standby: the next ones are made
    anew, and may find another server under the same name or among the hosts."""
    connection = context.connection
    if connection is None or not connection.get_execution_options().get(_OWN_OPTION):
        return
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY_SQLSTATE:
        context.is_disconnect = True


class RetryTransaction(StorageError):
    """The database rolled the operation back and asks for it to be repeated."""


def is_key_race(error: BaseException) -> bool:
    """Whether two writes of one idempotency key met: the repetition finds the first one's row."""
    return isinstance(error, IntegrityError) and "uq_" in str(error.orig)


def _translate(error: SQLAlchemyError | OSError) -> StorageError:
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        if state == _READ_ONLY_SQLSTATE:
            return RetryTransaction(f"the server is read-only, a standby perhaps: {error.orig}")
        if state in _RETRY_SQLSTATES or is_key_race(error):
            return RetryTransaction(f"the database failed: {error.orig}")
    return as_storage_error(error)


def _without_retry(error: StorageError) -> StorageError:
    return StorageError(str(error)) if isinstance(error, RetryTransaction) else error


def _tries() -> list[bool]:
    """One item a try; true for the last."""
    return [number == MAX_TRIES for number in range(1, MAX_TRIES + 1)]


async def _pause() -> None:
    await asyncio.sleep(random.uniform(0.005, 0.05))
