"""What all handles of one database share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine import hosts, migrate, postgresql, sqlite, urls
from sessionsdb.engine.hot import HotPaths
from sessionsdb.engine.lane import Clock
from sessionsdb.engine.runner import Runner, to_its_end
from sessionsdb.engine.saves import Saves
from sessionsdb.engine.sqlite import Durability
from sessionsdb.engine.waits import Waits
from sessionsdb.engine.wakeups import PostgresWakeups, SqliteWakeups, Wakeups
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.types import Limits


class Core:
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
        self.wakeups: Wakeups
        if urls.kind(engine.url) == "sqlite":
            self.runner = runner = sqlite.SqliteRunner(engine, clock=clock)
            self.wakeups = SqliteWakeups(runner)
        else:
            self.runner = postgresql.PostgresRunner(
                engine, transaction_pooler=transaction_pooler, own_engine=own_engine
            )
            self.wakeups = PostgresWakeups(self.runner, can_listen=not transaction_pooler)
        self.hot = HotPaths(self.runner, limits)
        self.saves = Saves(self.runner, message_bytes=limits.message_bytes)
        self.waits = Waits(self.runner, self.wakeups)

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
        await to_its_end(self._leave())

    async def _leave(self) -> None:
        async with self._door:
            self._entered -= 1
            if self._entered > 0:
                return
            await self.waits.close()
            await self.hot.drain()
            self.saves.clear()
            await self.wakeups.close()
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
                found = await self.runner.read(migrate.current)
            if found != migrate.head():
                if upgrade:
                    await self.runner.write(migrate.upgrade)
                else:
                    await self.runner.read(migrate.check)
        except BaseException:
            await to_its_end(self._close())
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
            engine = sqlite.create(parsed)
        sqlite.prepare(engine, durability)
        return engine
    with _url_errors():
        return postgresql.create(parsed, durability, transaction_pooler=transaction_pooler)


def adopt_engine(engine: AsyncEngine, durability: Durability) -> AsyncEngine:
    """A caller's engine, made fit. Raises ``InvalidArgument`` for other databases."""
    if urls.check_engine(engine) == "sqlite":
        sqlite.prepare(engine, durability)
    elif durability != "full":
        raise InvalidArgument(
            'durability="normal" can\'t be set on an engine of yours; give it '
            'connect_args={"server_settings": {"synchronous_commit": "off"}}'
        )
    else:
        hosts.adopt(engine)
    return engine
