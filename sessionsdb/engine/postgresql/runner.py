"""Run operations on PostgreSQL: single statements without a transaction, and transactions."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import QueuePool, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.fair_turns import FairTurns
from sessionsdb.engine.postgresql import citus, exactly_once, failover, recovery, savepoint
from sessionsdb.engine.postgresql.connection_cache import (
    CACHED_CONNECTIONS,
    CACHED_TRANSACTIONS,
    ConnectionCache,
)
from sessionsdb.engine.postgresql.primary_check import PrimaryCheck, StandbyCheck
from sessionsdb.engine.postgresql.recovery import NOTHING_WRITTEN, RESULT_UNKNOWN
from sessionsdb.engine.postgresql.retries import (
    DATABASE_ERRORS,
    MAX_ATTEMPTS,
    READ_ONLY_SQLSTATE,
    STANDBY_ATTEMPTS,
    RetryTransaction,
    as_postgres_error,
    pause_before_retry,
    run_with_retries,
    without_retry,
)
from sessionsdb.engine.postgresql.search_path import schema_of
from sessionsdb.engine.postgresql.server_process import ServerProcess
from sessionsdb.engine.postgresql.write_stamps import StampedWrite, StampSlots
from sessionsdb.engine.runner import (
    ExecuteRequests,
    FindCommitted,
    NotOpen,
    Operation,
    Request,
    Result,
)
from sessionsdb.engine.storage_errors import ConnectionLost, driver_error
from sessionsdb.engine.tasks import BackgroundTasks

T = TypeVar("T")

TRANSACTIONS = 8
"""How many transactions run at once, unless they stall: see ``FairTurns``. More of them only wait
for each other: the caller's process is the limit."""

PATIENCE_SECONDS = 30.0
"""How long a read or a transaction waits while no other of its kind ends. The pool waits as long
for a connection."""

_OWN_OPTION = "sessionsdb"
"""The execution option that marks our use of an engine, which its owner may use too."""


class PostgresRunner:
    """The runner of a PostgreSQL database."""

    has_one_writer = False
    sees_uncommitted = False

    # 64 concurrent turns take 178 µs each in one batch, and 147 µs in two.
    parallel_batches = 2

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        transaction_pooler: bool = False,
        own_engine: bool = False,
        is_standby: bool = False,
    ) -> None:
        """Make the runner of a primary, or with ``is_standby`` of a standby.

        The runner of a standby only reads. It gives up soon, since the primary can be asked too.
        """
        self.engine = engine
        self._marked_engine = engine.execution_options(**{_OWN_OPTION: True})
        # The owner of a caller's engine needs all connections of its pool.
        keeps = own_engine and not transaction_pooler
        self._connection_cache = ConnectionCache(
            self._marked_engine, CACHED_CONNECTIONS if keeps else 0, autocommit=True
        )
        self._transaction_cache = ConnectionCache(
            self._marked_engine, CACHED_TRANSACTIONS if keeps else 0
        )
        self._snapshot_engine = self._marked_engine.execution_options(
            isolation_level="REPEATABLE READ"
        )
        self._transaction_pooler = transaction_pooler
        self._own_engine = own_engine
        self._schema = schema_of(engine)
        # The path of a caller's connection can only be set inside a transaction.
        self._only_transactions = transaction_pooler or not (own_engine or self._schema is None)
        if not event.contains(engine.sync_engine, "handle_error", _drop_standby_connections):
            event.listen(engine.sync_engine, "handle_error", _drop_standby_connections)
        self._tasks = BackgroundTasks()
        check = StandbyCheck if is_standby else PrimaryCheck
        self._server_check = check(failover.hosts_of(engine), self._tasks)
        self._is_standby = is_standby
        self._read_attempts = STANDBY_ATTEMPTS if is_standby else MAX_ATTEMPTS
        self._slots = StampSlots()
        self._read_turns: FairTurns
        self._transaction_turns: FairTurns
        self._is_open = False
        self._accepts_writes = False
        """Whether it is open, and no close has begun."""
        self._on_citus = False
        self._running = 0
        """How many operations use a connection now."""
        self._idle: asyncio.Future[None] | None = None
        """Done when no operation uses a connection, while ``close`` waits for that."""

    async def open(self) -> None:
        self._connection_cache.open()
        self._transaction_cache.open()
        self._read_turns = self._turns(CACHED_CONNECTIONS)
        self._transaction_turns = self._turns(TRANSACTIONS)
        self._is_open = self._accepts_writes = True
        if not self._is_standby:
            self._on_citus = await self.read(citus.has_citus)
            self._slots.with_begin = (
                self._own_engine and not self._transaction_pooler and not self._on_citus
            )

    def _turns(self, usual: int) -> FairTurns:
        """Return the turns of the reads, or of the transactions.

        Neither grow beyond four fifths of the pool's size, 8 of ours. With its overflow it has
        twice as many connections. So slow reads, or a lock that transactions wait for, leave some
        for batches, heartbeats and the listener.
        """
        pool = self.engine.pool
        size = pool.size() if isinstance(pool, QueuePool) else 0
        if not size:  # the pool has no bound
            return FairTurns(usual)
        most = size - size // 5
        return FairTurns(min(usual, most), most, patience=PATIENCE_SECONDS)

    async def read(self, operation: Operation[T]) -> T:
        self._require_open()
        return await run_with_retries(
            partial(self._run_in_turn, operation),
            (ConnectionLost, RetryTransaction),
            self._read_attempts,
        )

    async def read_snapshot(
        self, operation: Operation[T], *, first: Operation[object] | None = None
    ) -> T:
        """Run an operation of several reads. ``first`` runs before it, in a transaction of its own
        on the same connection: it sees the past of the snapshot."""
        self._require_open()
        return await run_with_retries(
            partial(self._run_snapshot, operation, first),
            (ConnectionLost, RetryTransaction),
            self._read_attempts,
        )

    async def write(self, operation: Operation[T]) -> T:
        self._require_accepts_writes()
        return await self._tasks.finish(self._run_transaction(operation, self._slots))

    async def write_repeatable(self, operation: Operation[T]) -> T:
        self._require_accepts_writes()
        return await self._tasks.finish(self._run_transaction(operation, None))

    async def write_autocommit(self, operation: Operation[T]) -> T:
        self._require_accepts_writes()
        return await run_with_retries(
            lambda: self._tasks.finish(self._run_autocommit(operation)), (RetryTransaction,)
        )

    # The statement sets synchronous_commit.
    write_unsynced = write_autocommit

    async def write_exactly_once(
        self,
        requests: list[Request],
        execute: ExecuteRequests[Request, Result],
        find_committed: FindCommitted[Request, Result],
    ) -> list[Result]:
        if self._transaction_pooler or self._on_citus:
            # A process behind a pooler can't be ended. On Citus the end of the process does not
            # settle the write: a node may still commit it, a minute later after a crash. A lookup
            # finds nothing until then. The row of a stamp is locked until then.
            return await self.write(lambda connection: list(execute(connection, requests)))
        return await exactly_once.write_exactly_once(self, requests, execute, find_committed)

    async def read_durable(self, operation: Operation[T]) -> T:
        self._require_open()
        # As a write with a stamp: it runs on the primary only, and its commit comes behind the
        # commits of all rows that it read. When it is durable, they are.
        write = StampedWrite(operation, self._slots)
        try:
            return await recovery.repeat(partial(self._attempt, write))
        finally:
            write.close()

    async def run_in_savepoint(self, connection: AsyncConnection, operation: Operation[T]) -> T:
        return await savepoint.run_in_savepoint(connection, operation, schema=self._schema)

    def writes_in_flight(self) -> asyncio.Future[Any] | None:
        return self._tasks.in_flight()

    async def close(self) -> None:
        self._accepts_writes = False  # new ones would keep it open for ever
        await self._tasks.drain()
        self._is_open = False
        # A read that gives its connection back later would leave it open.
        while self._running:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        await self._connection_cache.close()
        await self._transaction_cache.close()

    def _require_open(self) -> None:
        if not self._is_open:
            raise NotOpen

    def _require_accepts_writes(self) -> None:
        if not self._accepts_writes:
            raise NotOpen

    async def _run_in_turn(self, operation: Operation[T]) -> T:
        # Only reads wait here: a write serves a whole batch of callers.
        turns = self._read_turns
        if not turns.enter_at_once():
            await turns.enter()
        try:
            self._require_open()  # it may have been closed during the wait
            return await self._run(operation)
        finally:
            turns.leave()

    async def _run(self, operation: Operation[T]) -> T:
        self._running += 1
        try:
            with self._server_check.while_waiting():
                if not self._only_transactions:
                    return await self._connection_cache.run(operation)
                # The driver prepares a statement and then executes it. Between the two a pooler
                # may switch to another connection, unless they are in one transaction.
                async with self._marked_engine.begin() as connection:
                    return await connection.run_sync(operation)
        except DATABASE_ERRORS as error:
            translated = as_postgres_error(error)
            if isinstance(translated, ConnectionLost):
                await self._evict_idle()
            raise translated from driver_error(error)
        finally:
            self._end_run()

    async def _run_snapshot(self, operation: Operation[T], first: Operation[object] | None) -> T:
        self._running += 1
        try:
            with self._server_check.while_waiting():
                async with self._snapshot_engine.connect() as connection:
                    if first is not None:
                        async with connection.begin():
                            await connection.run_sync(first)
                    async with connection.begin():
                        return await connection.run_sync(operation)
        except DATABASE_ERRORS as error:
            translated = as_postgres_error(error)
            if isinstance(translated, ConnectionLost):
                await self._evict_idle()
            raise translated from driver_error(error)
        finally:
            self._end_run()

    def _end_run(self) -> None:
        self._running -= 1
        if self._idle is not None and not self._running:
            self._idle.set_result(None)
            self._idle = None

    async def _run_autocommit(self, operation: Operation[T]) -> T:
        if self._transaction_pooler:
            return await self._run(operation)
        process = ServerProcess()
        try:
            return await self._run(partial(process.run, operation=operation))
        except ConnectionLost:
            await recovery.repeat(partial(self._terminate, process))
            raise

    async def _run_transaction(self, operation: Operation[T], slots: StampSlots | None) -> T:
        write = StampedWrite(operation, slots)
        attempt = partial(self._attempt, write)
        attempts = 0
        try:
            while True:
                try:
                    if not write.is_unsettled:
                        return await attempt()
                    return await recovery.repeat(
                        attempt,
                        until=lambda: not write.is_unsettled,
                        verdict=lambda: RESULT_UNKNOWN if write.in_doubt else NOTHING_WRITTEN,
                    )
                except (ConnectionLost, RetryTransaction) as error:
                    attempts += 1
                    if attempts >= MAX_ATTEMPTS and not write.in_doubt:
                        raise without_retry(error) from error.__cause__
                await pause_before_retry()
        finally:
            write.close()

    async def _attempt(self, write: StampedWrite[T]) -> T:
        """Run one transaction of a write, unless an earlier one was committed."""
        if write.lost_process is not None:
            await self._terminate(write.lost_process)
            write.lost_process = None
        turns = self._transaction_turns
        if not turns.enter_at_once():
            await turns.enter()
        try:
            with self._server_check.while_waiting():
                await self._transaction_cache.run(write.run_transaction)
            write.in_doubt = False
            return write.result
        except DATABASE_ERRORS as error:
            translated = as_postgres_error(error)
            if isinstance(translated, ConnectionLost) or isinstance(error, OSError):
                write.lose_answer()
                await self._evict_idle()
            elif getattr(error, "connection_invalidated", False):
                await self._evict_idle()  # the others lead to a standby, too
            raise translated from driver_error(error)
        finally:
            write.committing = False
            turns.leave()

    async def _evict_idle(self) -> None:
        """Return all idle connections to the pool, which checks their age."""
        await self._connection_cache.evict_all()
        await self._transaction_cache.evict_all()

    async def _terminate(self, process: ServerProcess) -> None:
        # Behind a transaction pooler the process may serve another client by now.
        if not self._transaction_pooler:
            await recovery.terminate(self.read, process)


def _drop_standby_connections(context: ExceptionContext) -> None:
    """Invalidate all connections when one of them leads to a standby.

    New connections may reach another server, under the same name or at another host of the list.
    """
    connection = context.connection
    if connection is None or not connection.get_execution_options().get(_OWN_OPTION):
        return
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY_SQLSTATE:
        context.is_disconnect = True
