"""Reads and writes of one database, where every write declares the topics that it wakes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from sessionsdb.engine.home import Home
from sessionsdb.engine.notifier import Hint, Notifier, Topic
from sessionsdb.engine.repeatable import require_repeatable
from sessionsdb.engine.runner import (
    ExecuteRequests,
    FindCommitted,
    NotOpen,
    Operation,
    Runner,
)
from sessionsdb.operations.keys import SessionKey, digest_of
from sessionsdb.runtime.locked_sessions import LockedSessions

T = TypeVar("T")
Request = TypeVar("Request")
Result = TypeVar("Result")

WORK: Final = "work"
"""The topic of idle workers: an inbox may have become ready."""

DONE: Final = "done"
"""The topic of callers that wait: a message may have been finished, or deleted."""

STOP: Final = "stop"
"""The topic of workers that run turns: a lease may have been taken away before its end."""

PIECES: Final = "pieces"
"""The topic of followers: a running turn may have streamed a piece."""

Topics = tuple[Topic | Hint, ...]
Wakes = Topics | Callable[[T], Topics]
"""The topics that a write wakes: a tuple, or a function of the write's result."""


def hint_about(topic: Topic, keys: Iterable[SessionKey] | None) -> Hint:
    """Return a topic that wakes only the subscribers which these sessions concern.

    ``None``: the sessions are not known, and it wakes all.
    """
    return Hint(topic, None if keys is None else frozenset(map(digest_of, keys)))


class DatabaseAccess:
    """Runs operations on one database, and wakes the subscribers of a topic after a commit.

    Each way to write says what becomes of a lost answer. ``write`` leaves a stamp.
    ``write_exactly_once`` needs a function that finds the committed request. The other two refuse
    an operation that is not declared as ``repeatable``.

    ``wakes`` has no default: a new write can't forget its topics. ``()`` says that no worker and
    no waiting caller needs to know of it. A wake-up is only a hint, which may be lost: workers and
    waiting callers poll as well.
    """

    def __init__(self, runner: Runner, notifier: Notifier) -> None:
        self.runner = runner
        self.notifier = notifier
        self.parallel_batches = runner.parallel_batches
        self.has_one_writer = runner.has_one_writer
        self.locked_sessions = LockedSessions()
        self._home: Home | None = None
        """Where the database is open, if it is."""
        self.is_open = False
        self.was_closed = False
        """Whether a close has begun, and the database was not opened since."""

    async def open_at_first_use(self) -> None:
        """Open the database if it was never opened. Raises ``NotOpen`` if it was closed."""
        raise NotOpen

    async def ready(self) -> None:
        """Return when the database is open. Opens it at its first use. Raises ``NotOpen`` once a
        close has begun.

        What lasts begins with this: the close has ended all others of its kind.
        """
        self.require_not_closed()
        if not self.is_open:
            await self.open_at_first_use()

    async def _open_and(
        self, run: Callable[[Operation[T]], Coroutine[Any, Any, T]], operation: Operation[T]
    ) -> T:
        await self.open_at_first_use()
        return await run(operation)

    def require_home(self) -> None:
        """Raise ``HandleOpenedElsewhere`` outside of the event loop that the database is open in.

        Every way to the database begins with this: a request that got into another loop's batch
        would never be answered.
        """
        if self._home is not None:
            self._home.require()

    def require_not_closed(self) -> None:
        """Raise ``NotOpen`` once a close has begun, and ``HandleOpenedElsewhere``.

        A call that shares batches with others begins with this. A close waits for the batches, and
        would never end while new calls come.
        """
        self.require_home()
        if self.was_closed:
            raise NotOpen

    def read(self, operation: Operation[T]) -> Coroutine[Any, Any, T]:
        """Run an operation that only reads, and return its result."""
        self.require_home()
        if not self.is_open:
            return self._open_and(self.runner.read, operation)
        return self.runner.read(operation)

    def read_snapshot(self, operation: Operation[T]) -> Coroutine[Any, Any, T]:
        """Run an operation of several reads, which all see the same commits."""
        self.require_home()
        if not self.is_open:
            return self._open_and(self.runner.read_snapshot, operation)
        return self.runner.read_snapshot(operation)

    def read_durable(self, operation: Operation[T]) -> Coroutine[Any, Any, T]:
        """Run an operation that finds out whether a write was committed, see ``Runner``."""
        self.require_home()
        if not self.is_open:
            return self._open_and(self.runner.read_durable, operation)
        return self.runner.read_durable(operation)

    async def write(self, operation: Operation[T], *, wakes: Wakes[T]) -> T:
        """Run an operation in a transaction of its own. It is committed when this returns."""
        self.require_home()
        if not self.is_open:
            await self.open_at_first_use()
        result = await self.runner.write(operation)
        self.wake(wakes(result) if callable(wakes) else wakes)
        return result

    async def write_repeatable(self, operation: Operation[T], *, wakes: Wakes[T]) -> T:
        """Run an operation that is declared as ``repeatable`` in a transaction without a stamp."""
        self.require_home()
        if not self.is_open:
            await self.open_at_first_use()
        require_repeatable(operation)
        result = await self.runner.write_repeatable(operation)
        self.wake(wakes(result) if callable(wakes) else wakes)
        return result

    async def write_autocommit(self, operation: Operation[T], *, wakes: Wakes[T]) -> T:
        """Run an operation that writes with one SQL statement. It is committed when this returns.

        The operation must be declared as ``repeatable``. Raises ``ConnectionLost`` when the answer
        was lost: the write may have been committed.
        """
        self.require_home()
        if not self.is_open:
            await self.open_at_first_use()
        require_repeatable(operation)
        result = await self.runner.write_autocommit(operation)
        self.wake(wakes(result) if callable(wakes) else wakes)
        return result

    async def write_unsynced(self, operation: Operation[T], *, wakes: Wakes[T]) -> T:
        """Run an operation as ``write_autocommit`` does, without its durability, see ``Runner``."""
        self.require_home()
        if not self.is_open:
            await self.open_at_first_use()
        require_repeatable(operation)
        result = await self.runner.write_unsynced(operation)
        self.wake(wakes(result) if callable(wakes) else wakes)
        return result

    async def write_exactly_once(
        self,
        requests: list[Request],
        execute: ExecuteRequests[Request, Result],
        find_committed: FindCommitted[Request, Result],
        *,
        wakes: Topics,
    ) -> list[Result]:
        """Write a batch of requests, see ``Runner``. One wake-up serves the whole batch."""
        self.require_home()
        if not self.is_open:
            await self.open_at_first_use()
        results = await self.runner.write_exactly_once(requests, execute, find_committed)
        self.wake(wakes)
        return results

    def wake(self, topics: Topics) -> None:
        """Wake all subscribers of ``topics``, in this process and in others."""
        for topic in topics:
            if isinstance(topic, Hint):
                self.notifier.notify(topic.topic, topic.digests)
            else:
                self.notifier.notify(topic)
