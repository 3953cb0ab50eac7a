"""Send and receive notifications between processes over PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sessionsdb.engine.notifier import TOPICS, Digests, Hint, Notifier, Topic, log
from sessionsdb.engine.postgresql.runner import PostgresRunner
from sessionsdb.engine.postgresql.search_path import schema_of
from sessionsdb.engine.statement import Statement
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError

NOTIFY_SECONDS = 0.010
"""The shortest time between two NOTIFY statements. Topics of the meantime go together."""

CHANNEL = "sessionsdb"

MAX_CHANNEL_BYTES = 63

MAX_DIGESTS = 400
"""A notification about more subjects of a topic names none. PostgreSQL takes less than 8,000 bytes:
two topics with 400 digests of 12 characters have 10,400, so each topic goes by itself then."""

_NOTIFY = Statement("SELECT pg_catalog.pg_notify(:channel, :payload)")


class PostgresNotifier(Notifier):
    """LISTEN on a connection of its own, NOTIFY on any connection.

    LISTEN cannot work behind a transaction pooler, where a subscription belongs to the client that
    has the connection next. Then only this process's own notifications and the polls are left.
    """

    def __init__(self, runner: PostgresRunner, *, can_listen: bool = True) -> None:
        super().__init__()
        self._can_listen = can_listen
        self._runner = runner
        self._channel = channel_of(schema_of(runner.engine))
        self._engine: AsyncEngine = runner.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._pending: dict[Topic, Digests | None] = {}
        self._is_sending = False
        self._last_sent_at = 0.0

    def notify(self, topic: Topic, digests: Digests | None = None) -> None:
        super().notify(topic, digests)
        known = self._pending.get(topic, frozenset())
        self._pending[topic] = None if known is None or digests is None else known | digests
        if not self._is_sending:
            self._is_sending = True
            self._tasks.start(self._send_pending())

    async def _send_pending(self) -> None:
        try:
            while self._pending:
                earliest = self._last_sent_at + NOTIFY_SECONDS
                await asyncio.sleep(max(0.0, earliest - time.monotonic()))
                pending, self._pending = self._pending, {}
                self._last_sent_at = time.monotonic()
                with contextlib.suppress(SessionsDBError):  # it may be lost: waiters poll
                    for payload in payloads(pending):
                        await self._runner.read(
                            partial(_notify, channel=self._channel, payload=payload)
                        )
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

    def _on_notification(self, payload: str) -> None:
        for hint in hints_of(payload):
            self._hint(*hint)


def payloads(pending: Mapping[Topic, Digests | None]) -> list[str]:
    """Return the payloads that tell topics and digests: ``work stop:1f…,a0…``.

    Usually there is one. A topic with many digests goes by itself.
    """
    short: list[str] = []
    long: list[str] = []
    for topic, digests in sorted(pending.items()):
        if digests is None or len(digests) > MAX_DIGESTS:
            short.append(topic)
        else:
            words = f"{topic}:{','.join(sorted(digests))}"
            (long if len(digests) > MAX_DIGESTS / 4 else short).append(words)
    return ([" ".join(short)] if short else []) + long


def hints_of(payload: str) -> list[Hint]:
    """Return the topics and digests of a payload. Words that are not known are passed over.

    Any role that may connect can send a payload. A wrong one wakes in vain, or not at all.
    """
    hints: list[Hint] = []
    for word in payload.split():
        name, has_digests, digests = word.partition(":")
        for topic in TOPICS:
            if topic == name:
                hints.append(Hint(topic, frozenset(digests.split(",")) if has_digests else None))
    return hints


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


def _notify(connection: Connection, channel: str, payload: str) -> None:
    _NOTIFY.rows(connection, {"channel": channel, "payload": payload})


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
            channel, lambda _connection, _pid, _channel, payload: on_notification(payload)
        )
        yield
    finally:
        # A connection with the driver's listeners must not go back into the pool.
        await connection.invalidate()
        await connection.close()
