"""Everything that the handles of one database share.

The parts for PostgreSQL are imported for PostgreSQL only, since asyncpg takes 0.1 s to import.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.util.concurrency import greenlet_spawn

from sessionsdb.engine import migrations, urls
from sessionsdb.engine.home import Home
from sessionsdb.engine.loop_lock import LoopLock
from sessionsdb.engine.notifier import Notifier
from sessionsdb.engine.repeatable import require_repeatable
from sessionsdb.engine.runner import NotOpen, Runner
from sessionsdb.engine.sqlite.connection import Clock
from sessionsdb.engine.sqlite.engine import configure_connections, create_sqlite_engine
from sessionsdb.engine.sqlite.notifier import SqliteNotifier
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.runtime.batched_calls import BatchedCalls
from sessionsdb.runtime.database_access import DatabaseAccess
from sessionsdb.runtime.outcome_waiter import OutcomeWaiter
from sessionsdb.types import Durability, Limits, SessionMessage

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sessionsdb.operations.history_page import HistoryPage
    from sessionsdb.runtime.follow_hub import FollowHub
    from sessionsdb.runtime.follow_subtree import Followed
    from sessionsdb.runtime.history_pages import HistoryPages
    from sessionsdb.runtime.standby_reads import StandbyReads
    from sessionsdb.runtime.transcript_cache import TranscriptCache
    from sessionsdb.runtime.transcript_loads import TranscriptLoads


class OpenDatabase(DatabaseAccess):
    """One database with its engine, its batched calls, its cached transcripts and its waiters.

    It is opened by the first handle that enters, by ``open``, or by its first use. If handles
    entered it, it closes with the last one that leaves. If ``open`` or the first use opened it, it
    stays open until ``close``.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        limits: Limits,
        clock: Clock | None,
        *,
        own_engine: bool,
        upgrade: bool,
        transaction_pooler: bool = False,
        read_engine: AsyncEngine | None = None,
    ) -> None:
        self.sync_engine = engine if isinstance(engine, Engine) else engine.sync_engine
        self._engine = None if isinstance(engine, Engine) else engine
        runner: Runner
        notifier: Notifier
        if urls.kind(engine.url) == "sqlite":
            runner = sqlite_runner = SqliteRunner(self.sync_engine, clock=clock)
            notifier = SqliteNotifier(sqlite_runner, work_mark=_work_mark)
        else:
            from sessionsdb.engine.postgresql.notifier import PostgresNotifier
            from sessionsdb.engine.postgresql.runner import PostgresRunner

            runner = PostgresRunner(
                self.engine, transaction_pooler=transaction_pooler, own_engine=own_engine
            )
            notifier = PostgresNotifier(runner, can_listen=not transaction_pooler)
        super().__init__(runner, notifier)
        self.limits = limits
        self._own_engine = own_engine
        self._upgrade = upgrade
        self._handles = 0
        """How many handles have entered and not left."""
        self._is_held = False
        """Whether it stays open without an entered handle."""
        self._opening = LoopLock()
        self.batched_calls = BatchedCalls(self, limits)
        self.outcome_waiter = OutcomeWaiter(self)
        self.followed: Followed = self
        self.standby: StandbyReads | None = None
        if read_engine is not None:
            from sessionsdb.runtime.standby_reads import StandbyReads

            self.standby = StandbyReads(self, read_engine, transaction_pooler=transaction_pooler)

    @property
    def engine(self) -> AsyncEngine:
        """The engine for asyncio. On SQLite it is made at its first use: see ``urls.engine_of``."""
        if self._engine is None:
            self._engine = _for_asyncio(self.sync_engine)
        return self._engine

    # Most processes follow nothing, and many save or load no transcript. They start faster without
    # the modules.

    @cached_property
    def transcript_cache(self) -> TranscriptCache:
        """The transcripts that this process saved last."""
        from sessionsdb.runtime.transcript_cache import TranscriptCache

        return TranscriptCache(self, message_bytes=self.limits.message_bytes)

    @cached_property
    def transcript_loads(self) -> TranscriptLoads:
        """The loads of whole transcripts."""
        from sessionsdb.runtime.transcript_loads import TranscriptLoads

        return TranscriptLoads(self)

    @cached_property
    def history_pages(self) -> HistoryPages:
        """The reads of pages of history."""
        from sessionsdb.runtime.history_pages import HistoryPages

        return HistoryPages(self)

    def read_page(self, page: HistoryPage) -> Coroutine[Any, Any, list[SessionMessage]]:
        return self.history_pages.read(page)

    @cached_property
    def follow_hub(self) -> FollowHub:
        """The followers of this process."""
        from sessionsdb.runtime.follow_hub import FollowHub

        return FollowHub(self)

    async def enter(self) -> None:
        """Enter one handle. If the database is not open yet, this connects, and upgrades or checks
        the schema.

        Raises ``SchemaOutOfDate``, and ``HandleOpenedElsewhere`` while it is open in another event
        loop.
        """
        async with self._open_once():
            self._handles += 1

    async def open(self) -> None:
        """Open the database until ``close``. Raises the same as ``enter``."""
        async with self._open_once():
            self._is_held = True

    async def open_at_first_use(self) -> None:
        if self.was_closed:
            raise NotOpen
        async with self._open_once(first_use=True):
            self._is_held = True

    @asynccontextmanager
    async def _open_once(self, *, first_use: bool = False) -> AsyncIterator[None]:
        """Open the database if it is not open, and run the block before anything can close it.

        Of many callers at once the first one opens it, and the others wait. If the first one fails
        or is cancelled, nothing is left open, and the next one opens it.
        """
        self.require_home()
        self._home = self._home or Home()
        async with self._opening.here():
            self.require_home()  # it may have been closed, and opened elsewhere, during the wait
            if not self.is_open:
                if first_use and self.was_closed:  # by another task, during the wait
                    self._home = None
                    raise NotOpen
                self._home = Home()
                await self._open()
                self.notifier.open()
                self.is_open, self.was_closed = True, False
            yield

    async def leave(self) -> None:
        """Leave one handle. The last one closes the database, unless ``open`` or the first use
        opened it.

        Raises ``HandleOpenedElsewhere``, and then leaves it open.
        """
        self.require_home()
        await finish_before_cancel(self._leave())

    async def _leave(self) -> None:
        async with self._opening.here():
            self.require_home()
            self._handles = max(0, self._handles - 1)
            if self._handles == 0 and not self._is_held:
                await self._close_all()

    async def close(self) -> None:
        """Close the database for all handles. Later calls raise ``NotOpen``, until it is opened.

        Ends all waits and followers, and waits for the writes under way. Does nothing if it is
        closed. Raises ``HandleOpenedElsewhere``, and then leaves it open.
        """
        self.require_home()
        await finish_before_cancel(self._close_for_all())

    async def _close_for_all(self) -> None:
        async with self._opening.here():
            self.require_home()
            self._handles, self._is_held = 0, False
            await self._close_all()

    async def _close_all(self) -> None:
        self.was_closed = True
        if not self.is_open:
            return
        try:
            # First those that last: nothing below waits for them, and no new ones begin.
            if "follow_hub" in vars(self):
                await self.follow_hub.close()
            if self.standby is not None:
                await self.standby.followed.follow_hub.close()
            await self.outcome_waiter.close()
            await self.batched_calls.drain()
            if "transcript_loads" in vars(self):
                await self.transcript_loads.drain()
            if "history_pages" in vars(self):
                await self.history_pages.drain()
            await self.notifier.close()
            await self._close()
        finally:
            # Not before: the calls that are under way still use the connections, and remember.
            if "transcript_loads" in vars(self):
                self.transcript_loads.clear()
            if "history_pages" in vars(self):
                self.history_pages.clear()
            if "transcript_cache" in vars(self):
                self.transcript_cache.clear()
            self.is_open = False
            self._home = None

    async def _close(self) -> None:
        try:
            if self.standby is not None:
                await self.standby.close()
        finally:
            try:
                await self.runner.close()
            finally:
                if self._own_engine:
                    await greenlet_spawn(self.sync_engine.dispose)

    async def _open(self) -> None:
        try:
            if self._own_engine and not self._upgrade:
                # SQLite would create an empty file.
                migrations.require_file(self.sync_engine.url)
            with _invalid_url_errors() if self._own_engine else nullcontext():
                await self.runner.open()
                # Read first: the schema is up to date at most openings, and then no lock is taken.
                revision = await self.runner.read(migrations.current)
            if revision != migrations.head():
                if self._upgrade:
                    require_repeatable(migrations.upgrade)
                    await self.runner.write_repeatable(migrations.upgrade)
                else:
                    await self.runner.read(migrations.check)
        except BaseException:
            await finish_before_cancel(self._close())
            self._home = None
            raise


def _work_mark() -> str:
    # Read by a process that watches the file: a command imports no statements of SQLite for it.
    from sessionsdb.operations.sqlite.work_mark import WORK_MARK

    return WORK_MARK


@contextmanager
def _invalid_url_errors() -> Iterator[None]:
    """Turn a driver's own errors over a part of the URL into ``InvalidArgument``.

    Examples are a port beyond 65535, and a text where a number is expected.
    """
    try:
        yield
    except SessionsDBError:
        raise
    except (ArgumentError, ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"the database URL can't be used: {error}") from error


def _for_asyncio(engine: Engine | AsyncEngine) -> AsyncEngine:
    if not isinstance(engine, Engine):
        return engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    return AsyncEngine(engine)


def create_engine(url: str, durability: Durability) -> AsyncEngine:
    """Create an engine for a URL, for use without a handle. Raises ``InvalidArgument``."""
    return _for_asyncio(engine_for(url, durability))


def engine_for(
    url: str,
    durability: Durability,
    *,
    transaction_pooler: bool = False,
    schema: str | None = None,
) -> Engine | AsyncEngine:
    """Create the engine of a handle, on SQLite the one behind an ``AsyncEngine``.

    Raises ``InvalidArgument`` for a URL that can't be used.
    """
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


def create_read_engine(
    read_url: str, primary: Engine | AsyncEngine, *, transaction_pooler: bool = False
) -> AsyncEngine:
    """Create an engine for the standbys of a primary. Raises ``InvalidArgument``."""
    if urls.kind(primary.url) == "sqlite":
        raise InvalidArgument(
            "read_url is for PostgreSQL: a SQLite file has no standby; leave read_url out"
        )
    parsed = urls.parse(read_url)
    if urls.kind(parsed) == "sqlite":
        raise InvalidArgument("read_url must name a standby of the PostgreSQL server, not a file")
    from sessionsdb.engine.postgresql.engine import create_postgres_engine
    from sessionsdb.engine.postgresql.search_path import schema_of

    schema = schema_of(primary)
    if urls.schema_of(parsed, schema) != schema:
        raise InvalidArgument(
            f"read_url names the schema {urls.schema_of(parsed)!r} and the database names none; "
            "name it in both, or give the argument schema"
        )
    with _invalid_url_errors():
        return create_postgres_engine(
            urls.with_standby_defaults(parsed.difference_update_query(["schema"])),
            "full",
            transaction_pooler=transaction_pooler,
            schema=schema,
            read_only=True,
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
        configure_connections(engine.sync_engine, durability)
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
