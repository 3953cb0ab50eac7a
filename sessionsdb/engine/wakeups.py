"""Hints that something was committed, so that nobody has to wait for a poll.

A hint may be lost, and whoever waits for one polls as well. It is given after the commit and off
its path: NOTIFY inside a transaction takes a lock that all of PostgreSQL's committers share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.lane import Lane
from sessionsdb.engine.runner import Runner, Tasks, pause_after
from sessionsdb.engine.sqlite import SqliteRunner
from sessionsdb.errors import SessionsDBError
from sessionsdb.operations.statement import Statement

log = logging.getLogger("sessionsdb.wakeups")

Topic = Literal["work", "done"]
"""``work``: an inbox may have become ready. ``done``: a message may have been finished."""

TOPICS: tuple[Topic, ...] = ("work", "done")

NOTIFY_SECONDS = 0.010
"""At most one NOTIFY in this time."""

WATCH_SECONDS = 0.010
"""How often a SQLite file is asked whether another connection changed it (4.5 µs each)."""

CHANNEL = "sessionsdb"


class Signal:
    """What one waiter waits on; set by a hint, and read by ``wait``."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float) -> bool:
        """Until a hint came since the last wait, or the timeout in seconds; whether one came."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Wakeups:
    """Hints within this process; the databases' own ways to reach others are built on it."""

    def __init__(self) -> None:
        self._signals: dict[Topic, set[Signal]] = {topic: set() for topic in TOPICS}
        self._tasks = Tasks()
        self._watcher: asyncio.Task[Any] | None = None

    def announce(self, topic: Topic) -> None:
        """Say, after a commit, that there may be something to do."""
        for signal in self._signals[topic]:
            signal.set()

    @asynccontextmanager
    async def listening(self, topic: Topic, signal: Signal | None = None) -> AsyncIterator[Signal]:
        """A signal that hints of this topic set while it is open."""
        signal = signal or Signal()
        self._signals[topic].add(signal)
        self._watch()
        try:
            yield signal
        finally:
            self._signals[topic].discard(signal)

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))
            self._watcher = None
        await self._tasks.drain()

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch_others())

    async def _watch_others(self) -> None:
        """Turn the hints of other processes into ours, until cancelled."""

    def _wanted(self) -> bool:
        return any(self._signals.values())

    def _wake_all(self) -> None:
        for topic in TOPICS:
            for signal in self._signals[topic]:
                signal.set()


class SqliteWakeups(Wakeups):
    """``PRAGMA data_version`` on a connection of its own changes when any other one commits."""

    def __init__(self, runner: SqliteRunner) -> None:
        super().__init__()
        self._runner = runner
        self._closing = asyncio.Event()
        self._failures = 0

    async def close(self) -> None:
        # Not by cancelling: a connection whose opening is interrupted stays open.
        self._closing.set()
        if self._watcher is not None:
            await asyncio.wait((self._watcher,))
        self._closing.clear()
        await super().close()

    async def _watch_others(self) -> None:
        self._failures = 0
        while self._watching() and not self._runner.in_memory:
            try:
                await self._watch_file()
            except Exception as error:  # the poll serves meanwhile
                if self._failures == 0:
                    log.warning("can't watch the database for changes, polling instead: %s", error)
                self._failures += 1
                await self._pause(pause_after(self._failures))

    def _watching(self) -> bool:
        return self._wanted() and not self._closing.is_set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _watch_file(self) -> None:
        lane = await self._runner.open_lane()
        try:
            seen = await lane.run(partial(_data_version, lane))
            if self._failures:
                log.info("watching the database for changes again")
            self._failures = 0
            self._wake_all()  # what was committed while nobody watched
            while self._watching():
                await self._pause(WATCH_SECONDS)
                version = await lane.run(partial(_data_version, lane))
                if version != seen:
                    self._wake_all()
                seen = version
        finally:
            await lane.close()


def _data_version(lane: Lane) -> int:
    return int(lane.raw.execute("PRAGMA data_version").fetchone()[0])


class PostgresWakeups(Wakeups):
    """LISTEN on a connection of its own, NOTIFY on any.

    Behind a transaction pooler nobody can LISTEN: what a connection listens for belongs to
    whoever has it next. Then only this process's own hints and the polls are left.
    """

    def __init__(self, runner: Runner, *, can_listen: bool = True) -> None:
        super().__init__()
        self._can_listen = can_listen
        self._runner = runner
        self._engine: AsyncEngine = runner.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._due: set[Topic] = set()
        self._notifying = False
        self._last = 0.0

    def announce(self, topic: Topic) -> None:
        super().announce(topic)
        self._due.add(topic)
        if not self._notifying:
            self._notifying = True
            self._tasks.start(self._notify())

    async def _notify(self) -> None:
        try:
            while self._due:
                await asyncio.sleep(max(0.0, self._last + NOTIFY_SECONDS - time.monotonic()))
                topics, self._due = sorted(self._due), set()
                self._last = time.monotonic()
                with contextlib.suppress(SessionsDBError):  # only a hint
                    await self._runner.read(partial(_notify, topics=topics))
        finally:
            self._notifying = False

    async def _watch_others(self) -> None:
        failures = 0
        while self._can_listen:
            lost = asyncio.Event()
            try:
                async with _listener(self._engine, self._heard, lost.set):
                    if failures:
                        log.info("listening for wake-ups again")
                    failures = 0
                    self._wake_all()  # what was said while nobody listened
                    await lost.wait()
                    log.warning("the connection that listens for wake-ups was lost")
            except Exception as error:  # polling serves meanwhile
                if failures == 0:
                    log.warning("can't listen for wake-ups, polling instead: %s", error)
                failures += 1
            await asyncio.sleep(pause_after(failures))

    def _heard(self, topics: str) -> None:
        for topic in TOPICS:
            if topic in topics.split():
                super().announce(topic)


_NOTIFY = Statement("SELECT pg_notify(:channel, :topics)")


def _notify(connection: Connection, topics: list[Topic]) -> None:
    _NOTIFY.rows(connection, {"channel": CHANNEL, "topics": " ".join(topics)})


@asynccontextmanager
async def _listener(
    engine: AsyncEngine, heard: Callable[[str], None], lost: Callable[[], None]
) -> AsyncIterator[None]:
    connection: AsyncConnection = await engine.connect()
    try:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        driver.add_termination_listener(lambda *_: lost())
        await driver.add_listener(CHANNEL, lambda _c, _pid, _channel, topics: heard(topics))
        yield
    finally:
        # The driver's listeners must not go back into the pool with the connection.
        await connection.invalidate()
        await connection.close()
