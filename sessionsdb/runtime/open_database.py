"""What all handles of one database share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine import migrations, urls
from sessionsdb.engine.notifier import Notifier
from sessionsdb.engine.postgresql import failover
from sessionsdb.engine.postgresql.engine import create_postgres_engine
from sessionsdb.engine.postgresql.notifier import PostgresNotifier
from sessionsdb.engine.postgresql.runner import PostgresRunner
from sessionsdb.engine.runner import Runner
from sessionsdb.engine.sqlite.connection import Clock
from sessionsdb.engine.sqlite.engine import configure_connections, create_sqlite_engine
from sessionsdb.engine.sqlite.notifier import SqliteNotifier
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.runtime.batched_calls import BatchedCalls
from sessionsdb.runtime.outcome_waiter import OutcomeWaiter
from sessionsdb.runtime.transcript_cache import TranscriptCache
from sessionsdb.types import Durability, Limits


class OpenDatabase:
    """One database, open: its runner, its coalescers, its saves, its wake-ups and its waiters."""

    def __init__(
        self,
        engine: AsyncEngine,
        limits: Limits,
        clock: Clock | None,
        *,
        own_engine: bool,
        transaction_pooler: bool = False,
    ) -> None:
        self.engine = engine
        self._own_engine = own_engine
        self.limits = limits
        self._entered = 0
        self._door = asyncio.Lock()
        self.runner: Runner
        self.notifier: Notifier
        if urls.kind(engine.url) == "sqlite":
            self.runner = runner = SqliteRunner(engine, clock=clock)
            self.notifier = SqliteNotifier(runner)
        else:
            self.runner = PostgresRunner(
                engine, transaction_pooler=transaction_pooler, own_engine=own_engine
            )
            self.notifier = PostgresNotifier(self.runner, can_listen=not transaction_pooler)
        self.calls = BatchedCalls(self.runner, limits)
        self.saves = TranscriptCache(self.runner, message_bytes=limits.message_bytes)
        self.waits = OutcomeWaiter(self.runner, self.notifier)

    async def enter(self, *, upgrade: bool) -> None:
        """Open with the first handle that is entered: connect, and bring the schema up or check
        it. Raises ``SchemaOutOfDate``."""
        async with self._door:
            if self._entered == 0:
                await self._open(upgrade=upgrade)
            self._entered += 1

    async def leave(self) -> None:
        """Close with the last handle that is left: wait for what is under way, and let go of all
        connections."""
        await finish_before_cancel(self._leave())

    async def _leave(self) -> None:
        async with self._door:
            self._entered -= 1
            if self._entered > 0:
                return
            await self.waits.close()
            await self.calls.drain()
            self.saves.clear()
            await self.notifier.close()
            await self._close()

    async def _close(self) -> None:
        try:
            await self.runner.close()
        finally:
            if self._own_engine:
                await self.engine.dispose()

    async def _open(self, *, upgrade: bool) -> None:
        try:
            with _url_errors() if self._own_engine else nullcontext():
                await self.runner.open()
                # Most often there is nothing to do, and then nothing is locked.
                found = await self.runner.read(migrations.current)
            if found != migrations.head():
                if upgrade:
                    await self.runner.write(migrations.upgrade)
                else:
                    await self.runner.read(migrations.check)
        except BaseException:
            await finish_before_cancel(self._close())
            raise


@contextmanager
def _url_errors() -> Iterator[None]:
    """What drivers raise for a part of a URL that is theirs to read: a port beyond the last, a
    number that is none."""
    try:
        yield
    except SessionsDBError:
        raise
    except (ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"the database URL can't be used: {error}") from error


def create_engine(
    url: str, durability: Durability, *, transaction_pooler: bool = False
) -> AsyncEngine:
    """An engine of our own for a URL."""
    parsed = urls.parse(url)
    if urls.kind(parsed) == "sqlite":
        if transaction_pooler:
            raise InvalidArgument("transaction_pooler is for PostgreSQL; leave it out for SQLite")
        with _url_errors():
            engine = create_sqlite_engine(parsed)
        configure_connections(engine, durability)
        return engine
    with _url_errors():
        return create_postgres_engine(parsed, durability, transaction_pooler=transaction_pooler)


def adopt_engine(engine: AsyncEngine, durability: Durability) -> AsyncEngine:
    """A caller's engine, made fit. Raises ``InvalidArgument`` for other databases."""
    if urls.check_engine(engine) == "sqlite":
        configure_connections(engine, durability)
    elif durability != "full":
        raise InvalidArgument(
            'durability="normal" can\'t be set on an engine of yours; give it '
            'connect_args={"server_settings": {"synchronous_commit": "off"}}'
        )
    else:
        failover.attach_to_foreign_engine(engine)
    return engine
