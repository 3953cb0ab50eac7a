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
from uuid import uuid4

from sqlalchemy import NullPool, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sessionsdb.engine import fate, hosts
from sessionsdb.engine.at_hand import AT_HAND, AtHand
from sessionsdb.engine.runner import (
    ConnectionLost,
    NotOpen,
    Operation,
    StatementRefused,
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

# read_only_sql_transaction: it is a standby
_READ_ONLY = "25006"

# invalid_parameter_value, of a transaction that this server has not come to
_NOT_YET = "22023"

_OURS = "sessionsdb"
"""The execution option that tells our use of an engine from its owner's."""


def create(url: URL, durability: Durability, *, transaction_pooler: bool = False) -> AsyncEngine:
    """An engine of our own. Behind a pooler that gives a connection for one transaction at a
    time nothing may be kept on a connection: no prepared statements, no settings."""
    found = hosts.Hosts()
    connect: dict[str, Any] = {"async_creator_fn": found.connect}
    if transaction_pooler:
        if durability != "full":
            raise InvalidArgument(
                'durability="normal" can\'t be set through a transaction pooler; set '
                "synchronous_commit for the role: ALTER ROLE … SET synchronous_commit = off"
            )
        engine = create_async_engine(
            url.update_query_dict({"prepared_statement_cache_size": "0"}),
            poolclass=NullPool,
            connect_args={
                "statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"__sessionsdb_{uuid4().hex}__",
                **connect,
            },
        )
        return hosts.attach(engine, found)
    settings = {
        "application_name": "sessionsdb",
        # Our statements take arrays: planning them anew costs more than it finds.
        "plan_cache_mode": "force_generic_plan",
        "jit": "off",
    }
    if durability == "normal":
        settings["synchronous_commit"] = "off"
    engine = create_async_engine(
        url,
        pool_size=10,
        max_overflow=10,
        connect_args={"server_settings": settings, **connect},
    )
    return hosts.attach(engine, found)


class PostgresRunner:
    """The runner of a PostgreSQL database."""

    def __init__(
        self, engine: AsyncEngine, *, transaction_pooler: bool = False, own_engine: bool = False
    ) -> None:
        self.engine = engine
        self._ours = engine.execution_options(**{_OURS: True})
        autocommit = self._ours.execution_options(isolation_level="AUTOCOMMIT")
        most = AT_HAND if own_engine else 0  # nothing is kept of a pool that others need
        self._at_hand = AtHand(autocommit, most)
        self._transaction_pooler = transaction_pooler
        if not event.contains(engine.sync_engine, "handle_error", _leave_standby):
            event.listen(engine.sync_engine, "handle_error", _leave_standby)
        self._hosts = hosts.of(engine)
        self._looking: asyncio.Task[Any] | None = None
        self._tasks = Tasks()
        self._opened = False

    async def open(self) -> None:
        self._at_hand.open()
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
        return await self._ask(partial(fate.made_sure, operation=operation))

    def rest(self) -> asyncio.Future[Any] | None:
        return self._tasks.rest()

    async def _ask(self, operation: Operation[T]) -> T:
        """Ask the primary, with patience."""
        deadline = time.monotonic() + SETTLE_SECONDS
        for failures in itertools.count(1):
            try:
                return await self.read(partial(fate.on_the_primary, operation=operation))
            except StatementRefused:
                raise  # an answer
            except StorageError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        "the connection broke before the answer came, and the database has been "
                        f"out of reach for {SETTLE_SECONDS:.0f} s since: {_UNKNOWN}"
                    ) from error.__cause__
            await asyncio.sleep(pause_after(failures, first=0.02, most=1.0))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._tasks.drain()
        await self._at_hand.close()
        self._opened = False

    def _require_open(self) -> None:
        if not self._opened:
            raise NotOpen

    async def _run(self, operation: Operation[T]) -> T:
        try:
            with self._patience():
                if not self._transaction_pooler:
                    return await self._at_hand.run(operation)
                # The driver prepares a statement and then executes it: between the two a pooler
                # may give us another connection, except within a transaction.
                async with self._ours.begin() as connection:
                    return await connection.run_sync(operation)
        except (SQLAlchemyError, OSError) as error:
            translated = _translated(error)
            if isinstance(translated, ConnectionLost):
                await self._at_hand.put_away()
            raise translated from driver_error(error)

    def _patience(self) -> AbstractContextManager[object]:
        """An answer may take as long as it likes from the primary, but not from what was one."""
        if self._hosts is None or not self._hosts.can_move:
            return _NO_ALARM
        return _Alarm(hosts.LOOK_AGAIN_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if self._hosts is not None and (self._looking is None or self._looking.done()):
            self._looking = self._tasks.start(self._hosts.look_again())

    async def _statement(self, operation: Operation[T]) -> T:
        if self._transaction_pooler:
            return await self._run(operation)
        backend = fate.Backend()
        try:
            return await self._run(partial(backend.run, operation=operation))
        except ConnectionLost:
            await self._end(backend)
            raise

    async def _end(self, backend: fate.Backend) -> None:
        """See to it that what was sent over a broken connection runs no more.

        The server learns that a client is gone when it next speaks to it. Until then a statement
        that waits for a lock goes on, and would commit after it was looked for in vain and made
        again. Behind a transaction pooler nobody knows whose process it is by now.
        """
        while backend.who is not None and not self._transaction_pooler:
            if await self._ask(partial(fate.ended, who=backend.who)):
                return
            await _pause()

    async def _transaction(self, operation: Operation[T]) -> T:
        for last in _tries():
            attempt: fate.Attempt[T] = fate.Attempt(operation)
            try:
                with self._patience():
                    async with self._ours.connect() as connection:
                        await connection.begin()  # also for what goes to the driver as it stands
                        await connection.run_sync(attempt.run)
                        attempt.committing = True
                        await connection.commit()
                return attempt.result
            except (SQLAlchemyError, OSError) as error:
                translated = _translated(error)
                if isinstance(translated, ConnectionLost):
                    await self._end(attempt.backend)
                    if attempt.committing and await self._was_committed(attempt):
                        return attempt.result
                elif not isinstance(translated, _Again):
                    raise translated from driver_error(error)
                if last:
                    raise _final(translated) from driver_error(error)
            await _pause()
        raise AssertionError("unreachable")

    async def _was_committed(self, attempt: fate.Attempt[T]) -> bool:
        """What became of a transaction whose commit was not answered.

        Its number says so within one run of the server. After a crash or a failover the number may
        have been given again, if what was done under it first never reached the disk or the
        standby: then "committed" may be said of somebody else's.
        """
        if attempt.xid is None:
            return True  # it wrote nothing
        for failures in itertools.count(1):
            try:
                said, run = await self.settle(partial(fate.of_transaction, xid=attempt.xid))
            except StatementRefused as error:
                if getattr(error.__cause__, "sqlstate", None) == _NOT_YET:
                    return False  # what it did never came to this server
                raise
            if said == "aborted":
                return False
            if said == "committed" and attempt.backend.ran_in(run):
                return True
            if said != "in progress":
                raise StorageError(
                    "the server restarted or failed over before it answered a commit: " + _UNKNOWN
                )
            await asyncio.sleep(pause_after(failures, first=0.02, most=1.0))
        raise AssertionError("unreachable")


_UNKNOWN = "whether the write was committed is unknown; read before you repeat it"


_NO_ALARM = nullcontext()


class _Alarm:
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


def _leave_standby(context: ExceptionContext) -> None:
    """Let go of all connections when one turns out to lead to a standby: the next ones are made
    anew, and may find another server under the same name or among the hosts."""
    connection = context.connection
    if connection is None or not connection.get_execution_options().get(_OURS):
        return
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


class _Again(StorageError):
    """The database rolled the operation back and asks for it to be repeated."""


def is_key_race(error: BaseException) -> bool:
    """Whether two writes of one idempotency key met: the repetition finds the first one's row."""
    return isinstance(error, IntegrityError) and "uq_" in str(error.orig)


def _translated(error: SQLAlchemyError | OSError) -> StorageError:
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        if state == _READ_ONLY:
            return _Again(f"the server is read-only, a standby perhaps: {error.orig}")
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
