"""Notifications that something was committed, so that waiters need not wait for a poll.

A notification may be lost, so every waiter polls as well. It is sent after the commit and outside
of its transaction: NOTIFY inside a transaction takes a lock that all commits of a PostgreSQL
server share.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from sessionsdb.engine.tasks import BackgroundTasks

log = logging.getLogger("sessionsdb.wakeups")

Topic = Literal["work", "done", "stop"]
"""``work``: an inbox may have become ready. ``done``: a message may have been finished. ``stop``: a
running turn may have been stopped."""

TOPICS: tuple[Topic, ...] = ("work", "done", "stop")


class Signal:
    """An event that one waiter waits for. ``wait`` resets it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None) -> bool:
        """Wait until the signal is set, at most ``timeout`` seconds, and return whether it was.

        A signal that was set since the last wait returns at once.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Notifier:
    """Notifications within this process. Its subclasses add other processes."""

    def __init__(self) -> None:
        self._signals: dict[Topic, set[Signal]] = {topic: set() for topic in TOPICS}
        self._tasks = BackgroundTasks()
        self._watcher: asyncio.Task[Any] | None = None

    def notify(self, topic: Topic) -> None:
        """Set the signals of a topic. To be called after the commit."""
        for signal in self._signals[topic]:
            signal.set()

    @asynccontextmanager
    async def subscribe(self, topic: Topic, signal: Signal | None = None) -> AsyncIterator[Signal]:
        """Have notifications of a topic set a signal, until the context is left."""
        signal = signal or Signal()
        self._signals[topic].add(signal)
        self._start_watcher()
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

    def _start_watcher(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch_other_processes())

    async def _watch_other_processes(self) -> None:
        """Set signals for the commits of other processes, until cancelled."""

    def _has_subscribers(self) -> bool:
        return any(self._signals.values())

    def _notify_all(self) -> None:
        for topic in TOPICS:
            for signal in self._signals[topic]:
                signal.set()
