"""Hints that something was committed, so that nobody has to wait for a poll.

A hint may be lost, and whoever waits for one polls as well. It is given after the commit and off
its path: NOTIFY inside a transaction takes a lock that all of PostgreSQL's committers share.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from sessionsdb.engine.tasks import TaskGroup

log = logging.getLogger("sessionsdb.wakeups")

Topic = Literal["work", "done"]
"""``work``: an inbox may have become ready. ``done``: a message may have been finished."""

TOPICS: tuple[Topic, ...] = ("work", "done")


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


class Notifier:
    """Hints within this process; the databases' own ways to reach others are built on it."""

    def __init__(self) -> None:
        self._signals: dict[Topic, set[Signal]] = {topic: set() for topic in TOPICS}
        self._tasks = TaskGroup()
        self._watcher: asyncio.Task[Any] | None = None

    def notify(self, topic: Topic) -> None:
        """Say, after a commit, that there may be something to do."""
        for signal in self._signals[topic]:
            signal.set()

    @asynccontextmanager
    async def subscribe(self, topic: Topic, signal: Signal | None = None) -> AsyncIterator[Signal]:
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

    def _has_subscribers(self) -> bool:
        return any(self._signals.values())

    def _wake_all(self) -> None:
        for topic in TOPICS:
            for signal in self._signals[topic]:
                signal.set()
