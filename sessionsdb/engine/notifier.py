"""Notifications that something was committed, so that waiters need not wait for a poll.

A notification may be lost, so every waiter polls as well. It is sent after the commit and outside
of its transaction: NOTIFY inside a transaction takes a lock that all commits of a PostgreSQL
server share.

A notification may carry digests that name its subjects. A subscriber that knows its own subjects is
not woken by a notification about others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from sessionsdb.engine.tasks import BackgroundTasks

log = logging.getLogger("sessionsdb.wakeups")

Topic = Literal["work", "done", "stop", "pieces"]
"""``work``: an inbox may have become ready. ``done``: a message may have been finished. ``stop``: a
running turn may have been stopped. ``pieces``: a running turn may have streamed a piece."""

TOPICS: tuple[Topic, ...] = ("work", "done", "stop", "pieces")

Digests = frozenset[str]
"""Short names of the subjects of a notification. Two subjects may share one: a subscriber is then
woken in vain."""


class Hint(NamedTuple):
    """A topic, with the subjects that the notification is about."""

    topic: Topic
    digests: Digests | None = None
    """``None``: it may be about any subject."""


class Signal:
    """An event that one waiter waits for. ``wait`` resets it.

    Unlike an ``asyncio.Event`` it belongs to no event loop: a handle that is closed may be opened
    in another one. Only a wait belongs to its loop.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hint(self, digests: Digests | None) -> None:
        """Set the signal for a notification about these subjects. ``None``: about any."""
        self.set()

    async def wait(self, timeout: float | None) -> bool:
        """Wait until the signal is set, at most ``timeout`` seconds, and return whether it was.

        A signal that was set since the last wait returns at once.
        """
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._waiter
            except TimeoutError:
                return False
            finally:
                self._waiter = None
        self._is_set = False
        return True


class SubjectSignal(Signal):
    """A signal that is set only by notifications that concern the waiter.

    ``concerns`` gets the digests of each notification. A notification without digests concerns all.
    """

    def __init__(self, concerns: Callable[[Digests], bool]) -> None:
        super().__init__()
        self._concerns = concerns

    def hint(self, digests: Digests | None) -> None:
        if digests is None or self._concerns(digests):
            self.set()


class Notifier:
    """Notifications within this process. Its subclasses add other processes."""

    def __init__(self) -> None:
        self._signals: dict[Topic, set[Signal]] = {topic: set() for topic in TOPICS}
        self._tasks = BackgroundTasks()
        self._watcher: asyncio.Task[Any] | None = None
        self._is_closed = False

    def notify(self, topic: Topic, digests: Digests | None = None) -> None:
        """Set the signals of a topic, also in other processes. To be called after the commit."""
        self._hint(topic, digests)

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

    def open(self) -> None:
        """Watch other processes again after a close."""
        self._is_closed = False

    async def close(self) -> None:
        self._is_closed = True  # a watcher that starts later would open a connection
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))
            self._watcher = None
        await self._tasks.drain()

    def _start_watcher(self) -> None:
        if not self._is_closed and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.create_task(self._watch_other_processes())

    async def _watch_other_processes(self) -> None:
        """Set signals for the commits of other processes, until cancelled."""

    def _has_subscribers(self) -> bool:
        return any(self._signals.values())

    def _hint(self, topic: Topic, digests: Digests | None) -> None:
        for signal in self._signals[topic]:
            signal.hint(digests)

    def _notify_all(self) -> None:
        for topic in TOPICS:
            self._hint(topic, None)
