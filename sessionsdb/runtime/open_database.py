"""Everything that the handles of one database share.

The parts for PostgreSQL are imported for PostgreSQL only, since asyncpg takes 0.1 s to import.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine import migrations, urls
from sessionsdb.engine.home import Home
from sessionsdb.engine.notifier import Notifier
from sessionsdb.engine.runner import Runner
from sessionsdb.engine.sqlite.connection import Clock
from sessionsdb.engine.sqlite.engine import configure_connections, create_sqlite_engine
from sessionsdb.engine.sqlite.notifier import SqliteNotifier
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.operations.sqlite.work_mark import WORK_MARK
from sessionsdb.runtime.batched_calls import BatchedCalls
from sessionsdb.runtime.database_access import DatabaseAccess
from sessionsdb.runtime.follow_hub import FollowHub
from sessionsdb.runtime.outcome_waiter import OutcomeWaiter
from sessionsdb.runtime.transcript_cache import TranscriptCache
from sessionsdb.types import Durability, Limits


class OpenDatabase(DatabaseAccess):
    """One database with its engine, its batched calls, its cached transcripts and its waiters.

    It opens with the first handle that enters and closes with the last one that leaves.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        limits: Limits,
        clock: Clock | None,
        *,
        own_engine: bool,
        transaction_pooler: bool = False,
    ) -> None:
        runner: Runner
        notifier: Notifier
        if urls.kind(engine.url) == "sqlite":
            runner = sqlite_runner = SqliteRunner(engine, clock=clock)
            notifier = SqliteNotifier(sqlite_runner, work_mark=WORK_MARK)
        else:
            from sessionsdb.engine.postgresql.notifier import PostgresNotifier
            from sessionsdb.engine.postgresql.runner import PostgresRunner

            runner = PostgresRunner(
                engine, transaction_pooler=transaction_pooler, own_engine=own_engine
            )
            notifier = PostgresNotifier(runner, can_listen=not transaction_pooler)
        super().__init__(runner, notifier)
        self.engine = engine
        self.limits = limits
        self._own_engine = own_engine
        self._handles = 0
        self._opening = asyncio.Lock()
        self.batched_calls = BatchedCalls(self, limits)
        self.transcript_cache = TranscriptCache(self, message_bytes=limits.message_bytes)
        self.outcome_waiter = OutcomeWaiter(self)
        self.follow_hub = FollowHub(self)

    async def enter(self, *, upgrade: bool) -> None:
        """Enter one handle. The first one connects, and upgrades or checks the schema.

        Raises ``SchemaOutOfDate``, and ``HandleOpenedElsewhere`` while it is open in another event
        loop.
        """
        self.require_home()
        self._home = self._home or Home()
        async with self._opening:
            if self._handles == 0:
                self._home = Home()
                await self._open(upgrade=upgrade)
            self._handles += 1

    async def leave(self) -> None:
        """Leave one handle. The last one waits for the writes under way, then closes all
        connections.

        Raises ``HandleOpenedElsewhere``, and then leaves it open.
        """
        self.require_home()
        await finish_before_cancel(self._leave())

    async def _leave(self) -> None:
        async with self._opening:
            self._handles -= 1
            if self._handles > 0:
                return
            await self.outcome_waiter.close()
            await self.follow_hub.close()
            await self.batched_calls.drain()
            self.transcript_cache.clear()
            await self.notifier.close()
            await self._close()
            self._home = None

    async def _close(self) -> None:
        try:
            await self.runner.close()
        finally:
            if self._own_engine:
                await self.engine.dispose()

    async def _open(self, *, upgrade: bool) -> None:
        try:
            with _invalid_url_errors() if self._own_engine else nullcontext():
                await self.runner.open()
                # Read first: the schema is up to date at most openings, and then no lock is taken.
                revision = await self.read(migrations.current)
            if revision != migrations.head():
                if upgrade:
                    await self.write_repeatable(migrations.upgrade, wakes=())
                else:
                    await self.read(migrations.check)
        except BaseException:
            await finish_before_cancel(self._close())
            self._home = None
            raise


@contextmanager
def _invalid_url_errors() -> Iterator[None]:
    """Turn a driver's own errors over a part of the URL into ``InvalidArgument``, for example over
    a port beyond 65535 or a number that is none."""
    try:
        yield
    except SessionsDBError:
        raise
    except (ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"the database URL can't be used: {error}") from error


def create_engine(
    url: str,
    durability: Durability,
    *,
    transaction_pooler: bool = False,
    schema: str | None = None,
) -> AsyncEngine:
    """Create an engine for a URL. Raises ``InvalidArgument`` for a URL that can't be used."""
    parsed = urls.parse(url)
    schema = urls.schema_of(parsed, schema)
    if urls.kind(parsed) == "sqlite":
        if transaction_pooler:
            raise InvalidArgument("transaction_pooler is for PostgreSQL; leave it out for SQLite")
        with _invalid_url_errors():
            engine = create_sqlite_engine(parsed)
        configure_connections(engine, durability)
        return engine
    from sessionsdb.engine.postgresql.engine import create_postgres_engine

    with _invalid_url_errors():
        return create_postgres_engine(
            parsed.difference_update_query(["schema"]),
            durability,
            transaction_pooler=transaction_pooler,
            schema=schema,
        )


def adopt_engine(
    engine: AsyncEngine, durability: Durability, *, schema: str | None = None
) -> AsyncEngine:
    """Configure a caller's engine for use here, and return it.

    With a ``schema`` another engine is returned, on the same connections. Transactions of the
    caller's own engine are left as they are.

    Raises ``InvalidArgument`` for an engine of another database or driver.
    """
    if "schema" in engine.url.query:
        raise InvalidArgument(
            "the driver knows no parameter schema: leave it out of the URL of your engine, and "
            "write SessionsDB(engine, schema=…)"
        )
    schema = urls.schema_of(engine.url, schema)
    if urls.check_engine(engine) == "sqlite":
        configure_connections(engine, durability)
        return engine
    if durability != "full":
        raise InvalidArgument(
            'durability="normal" can\'t be set on an engine of yours; give it '
            'connect_args={"server_settings": {"synchronous_commit": "off"}}'
        )
    from sessionsdb.engine.postgresql import failover
    from sessionsdb.engine.postgresql.search_path import set_path_of_transactions

    failover.attach_to_foreign_engine(engine)
    return set_path_of_transactions(engine, schema)
