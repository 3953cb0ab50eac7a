"""Notice the commits of other processes to a SQLite file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from sessionsdb.engine.notifier import TOPICS, Notifier, Signal, log
from sessionsdb.engine.sqlite.connection import SqliteConnection
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.engine.tasks import backoff_seconds

WATCH_SECONDS = 0.010
"""How often a SQLite file is checked for commits of other connections (4.5 µs each)."""


class _Seen(NamedTuple):
    """The state of the file at one look."""

    data_version: int
    work_mark: tuple[Any, ...]


class SqliteNotifier(Notifier):
    """Watches ``PRAGMA data_version`` on a connection of its own.

    The version changes when any other connection commits. Most commits make no work: a worker that
    streams commits 20 times a second. So the query of one row that ``work_mark`` returns is read
    after each change. The topic ``work`` is woken if the first column is true, or if the row has
    changed.
    """

    def __init__(self, runner: SqliteRunner, *, work_mark: Callable[[], str]) -> None:
        super().__init__()
        self._runner = runner
        self._work_mark = work_mark
        self._end_of_sleep = Signal()
        self._failures = 0

    async def close(self) -> None:
        # The watcher is not cancelled: a connection stays open when its opening is interrupted.
        self._is_closed = True
        self._end_of_sleep.set()
        if self._watcher is not None:
            await asyncio.wait((self._watcher,))
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
                await self._end_of_sleep.wait(backoff_seconds(self._failures))

    def _is_needed(self) -> bool:
        return self._has_subscribers() and not self._is_closed

    async def _watch_file(self) -> None:
        connection = await self._runner.open_connection()
        try:
            last = await connection.run(partial(self._look, connection, None))
            if self._failures:
                log.info("watching the database for changes again")
            self._failures = 0
            self._notify_all()  # for commits since the last connection was lost
            while self._is_needed():
                await self._end_of_sleep.wait(WATCH_SECONDS)
                seen = await connection.run(partial(self._look, connection, last))
                if seen.data_version != last.data_version:
                    if seen.work_mark[0] or seen.work_mark != last.work_mark:
                        self._notify_all()
                    else:
                        self._notify_all_but_work()
                last = seen
        finally:
            await connection.close()

    def _notify_all_but_work(self) -> None:
        for topic in TOPICS:
            if topic != "work":
                self._hint(topic, None)

    def _look(self, connection: SqliteConnection, last: _Seen | None) -> _Seen:
        """Look at the file. The mark is read only if the file has changed."""
        [version] = connection.raw.execute("PRAGMA data_version").fetchone()
        if last is not None and last.data_version == version:
            return last
        return _Seen(version, connection.raw.execute(self._work_mark()).fetchone())
