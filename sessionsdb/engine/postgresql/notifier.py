"""Send and receive notifications between processes over PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.notifier import TOPICS, Notifier, Topic, log
from sessionsdb.engine.postgresql.search_path import schema_of
from sessionsdb.engine.runner import Runner
from sessionsdb.engine.statement import Statement
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError

NOTIFY_SECONDS = 0.010
"""The shortest time between two NOTIFY statements. Topics of the meantime go together."""

CHANNEL = "sessionsdb"

MAX_CHANNEL_BYTES = 63

_NOTIFY = Statement("SELECT pg_catalog.pg_notify(:channel, :topics)")


class PostgresNotifier(Notifier):
    """LISTEN on a connection of its own, NOTIFY on any connection.

    LISTEN cannot work behind a transaction pooler, where a subscription belongs to the client that
    has the connection next. Then only this process's own notifications and the polls are left.
    """

    def __init__(self, runner: Runner, *, can_listen: bool = True) -> None:
        super().__init__()
        self._can_listen = can_listen
        self._runner = runner
        self._channel = channel_of(schema_of(runner.engine))
        self._engine: AsyncEngine = runner.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._pending_topics: set[Topic] = set()
        self._is_sending = False
        self._last_sent_at = 0.0

    def notify(self, topic: Topic) -> None:
        super().notify(topic)
        self._pending_topics.add(topic)
        if not self._is_sending:
            self._is_sending = True
            self._tasks.start(self._send_pending())

    async def _send_pending(self) -> None:
        try:
            while self._pending_topics:
                earliest = self._last_sent_at + NOTIFY_SECONDS
                await asyncio.sleep(max(0.0, earliest - time.monotonic()))
                topics, self._pending_topics = sorted(self._pending_topics), set()
                self._last_sent_at = time.monotonic()
                with contextlib.suppress(SessionsDBError):  # it may be lost: waiters poll
                    await self._runner.read(partial(_notify, channel=self._channel, topics=topics))
        finally:
            self._is_sending = False

    async def _watch_other_processes(self) -> None:
        failures = 0
        while self._can_listen:
            lost = asyncio.Event()
            try:
                async with _listen(self._engine, self._channel, self._on_notification, lost.set):
                    if failures:
                        log.info("listening for wake-ups again")
                    failures = 0
                    self._notify_all()  # for commits since the last connection was lost
                    await lost.wait()
                    log.warning("the connection that listens for wake-ups was lost")
            except Exception as error:  # until the next try, waiters poll
                if failures == 0:
                    log.warning("can't listen for wake-ups, polling instead: %s", error)
                failures += 1
            await asyncio.sleep(backoff_seconds(failures))

    def _on_notification(self, topics: str) -> None:
        for topic in TOPICS:
            if topic in topics.split():
                super().notify(topic)


def channel_of(schema: str | None) -> str:
    """Return the channel of an installation: schemas of one database don't wake each other.

    A long name is replaced by its digest.
    """
    if schema is None:
        return CHANNEL
    channel = f"{CHANNEL}.{schema}"
    if len(channel.encode()) <= MAX_CHANNEL_BYTES:
        return channel
    return f"{CHANNEL}#{hashlib.sha256(schema.encode()).hexdigest()[:32]}"


def _notify(connection: Connection, channel: str, topics: list[Topic]) -> None:
    _NOTIFY.rows(connection, {"channel": channel, "topics": " ".join(topics)})


@asynccontextmanager
async def _listen(
    engine: AsyncEngine,
    channel: str,
    on_notification: Callable[[str], None],
    on_lost: Callable[[], None],
) -> AsyncIterator[None]:
    connection: AsyncConnection = await engine.connect()
    try:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        driver.add_termination_listener(lambda *_: on_lost())
        await driver.add_listener(
            channel, lambda _connection, _pid, _channel, topics: on_notification(topics)
        )
        yield
    finally:
        # A connection with the driver's listeners must not go back into the pool.
        await connection.invalidate()
        await connection.close()
