"""Send and receive notifications between processes over PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.notifier import (
    TOPICS,
    Notifier,
    Topic,
    log,
)
from sessionsdb.engine.runner import Runner
from sessionsdb.engine.statement import Statement
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError

NOTIFY_SECONDS = 0.010
"""At most one NOTIFY in this time."""

CHANNEL = "sessionsdb"


class PostgresNotifier(Notifier):
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

    def notify(self, topic: Topic) -> None:
        super().notify(topic)
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
            await asyncio.sleep(backoff_seconds(failures))

    def _heard(self, topics: str) -> None:
        for topic in TOPICS:
            if topic in topics.split():
                super().notify(topic)


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
