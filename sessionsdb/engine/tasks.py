"""Tasks that outlive a cancelled caller, and delays between retries."""

from __future__ import annotations

import asyncio
import contextlib
import random
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def result_or_raise(answer: T | Exception) -> T:
    """Return a result, or raise the exception that stands in its place."""
    if isinstance(answer, Exception):
        raise answer
    return answer


_uncancelled: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
"""The tasks of ``start_uncancelled`` that run."""


def start_uncancelled(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run work in a task that no caller is given, so that none can cancel it.

    The task needs no second one to protect what it awaits, see ``BackgroundTasks.finish``.
    """
    task = asyncio.create_task(work)
    _uncancelled.add(task)
    return task


async def finish_before_cancel(
    work: Coroutine[Any, Any, T], on_cancel: Callable[[], None] = lambda: None
) -> T:
    """Await work that must not be interrupted.

    When the caller is cancelled, ``on_cancel`` is called at once, the work runs to its end, and
    then ``CancelledError`` is raised.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # marks it as retrieved, or asyncio logs it
        raise


class BackgroundTasks:
    """Tasks that run to their end also when their callers are cancelled."""

    def __init__(self) -> None:
        self._running: set[asyncio.Future[Any]] = set()
        """A future for each work: its task, or one that is done when the work ends."""

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``. A cancelled caller stops waiting, and the work runs to its end.

        In a task that can't be cancelled, the work runs in that task. That saves three of six
        iterations of the event loop: a lone append to PostgreSQL takes 0.73 ms instead of 0.85.
        """
        if asyncio.current_task() in _uncancelled:
            return await self._run_here(work)
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` in the background."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._on_done)
        return task

    def in_flight(self) -> asyncio.Future[Any] | None:
        """Return a future that is done when all work of now has ended, or ``None`` if none runs.

        Work that starts later is not part of it.
        """
        return asyncio.ensure_future(asyncio.wait(set(self._running))) if self._running else None

    async def drain(self) -> None:
        """Wait until no work runs."""
        while self._running:
            await asyncio.wait(self._running)

    async def _run_here(self, work: Coroutine[Any, Any, T]) -> T:
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._running.add(ended)
        try:
            return await work
        finally:
            self._running.discard(ended)
            ended.set_result(None)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: its caller may have been cancelled


def backoff_seconds(
    failures: int, *, first_seconds: float = 0.1, max_seconds: float = 30.0
) -> float:
    """Return the seconds to wait after this many failures in a row.

    The delay is ``first_seconds``, doubled by each failure, and at most ``max_seconds``. It is
    drawn from the upper half, so that callers that failed together do not retry together.
    """
    return min(max_seconds, first_seconds * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1.0)
