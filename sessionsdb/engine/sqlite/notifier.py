"""Notice the commits of other processes to a SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from sessionsdb.engine.notifier import Notifier, log
from sessionsdb.engine.sqlite.connection import SqliteConnection
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.engine.tasks import backoff_seconds

WATCH_SECONDS = 0.010
"""How often a SQLite file is checked for commits of other connections (4.5 µs each)."""


class SqliteNotifier(Notifier):
    """Watches ``PRAGMA data_version`` on a connection of its own.

    The version changes when any other connection commits.
    """

    def __init__(self, runner: SqliteRunner) -> None:
        super().__init__()
        self._runner = runner
        self._closing = asyncio.Event()
        self._failures = 0

    async def close(self) -> None:
        # The watcher is not cancelled: a connection stays open when its opening is interrupted.
        self._closing.set()
        if self._watcher is not None:
            await asyncio.wait((self._watcher,))
        self._closing.clear()
        await super().close()

    async def _watch_other_processes(self) -> None:
        self._failures = 0
        while self._is_needed() and not self._runner.in_memory:
            try:
                await self._watch_file()
            except Exception as error:  # until the next try, waiters poll
                if self._failures == 0:
                    log.warning("can't watch the database for changes, polling instead: %s", error)
                self._failures += 1
                await self._sleep(backoff_seconds(self._failures))

    def _is_needed(self) -> bool:
        return self._has_subscribers() and not self._closing.is_set()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or return at once when the notifier is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _watch_file(self) -> None:
        connection = await self._runner.open_connection()
        try:
            last_version = await connection.run(partial(_data_version, connection))
            if self._failures:
                log.info("watching the database for changes again")
            self._failures = 0
            self._notify_all()  # for commits since the last connection was lost
            while self._is_needed():
                await self._sleep(WATCH_SECONDS)
                version = await connection.run(partial(_data_version, connection))
                if version != last_version:
                    self._notify_all()
                last_version = version
        finally:
            await connection.close()


def _data_version(connection: SqliteConnection) -> int:
    return int(connection.raw.execute("PRAGMA data_version").fetchone()[0])
