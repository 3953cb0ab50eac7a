"""Notice the commits of other processes to a SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from sessionsdb.engine.notifier import (
    Notifier,
    log,
)
from sessionsdb.engine.sqlite.connection import SqliteConnection
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.engine.tasks import backoff_seconds

WATCH_SECONDS = 0.010
"""How often a SQLite file is asked whether another connection changed it (4.5 µs each)."""


class SqliteNotifier(Notifier):
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
                await self._pause(backoff_seconds(self._failures))

    def _watching(self) -> bool:
        return self._has_subscribers() and not self._closing.is_set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _watch_file(self) -> None:
        lane = await self._runner.open_connection()
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


def _data_version(lane: SqliteConnection) -> int:
    return int(lane.raw.execute("PRAGMA data_version").fetchone()[0])
