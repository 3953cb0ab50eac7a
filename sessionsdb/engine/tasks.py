"""Tasks that go on when their caller is cancelled, and backoff delays."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from sessionsdb.engine.exactly_once import (
    R,
)
from sessionsdb.engine.runner import (
    T,
)


def result_or_raise(answer: R | Exception) -> R:
    """The result, or the exception that stands in its place."""
    if isinstance(answer, Exception):
        raise answer
    return answer


async def finish_before_cancel(
    work: Coroutine[Any, Any, T], given_up: Callable[[], None] = lambda: None
) -> T:
    """Await work that must not be broken off in the middle. A caller that is cancelled says
    ``given_up``, waits for the end all the same, and is cancelled then."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        given_up()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # seen
        raise


class TaskGroup:
    """Work that goes on when the caller who asked for it is cancelled."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``. A cancelled caller stops waiting; the work goes on to its end."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` by the side."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def in_flight(self) -> asyncio.Future[Any] | None:
        """Done when all that is under way now is over; ``None`` if nothing is."""
        return asyncio.ensure_future(asyncio.wait(set(self._running))) if self._running else None

    async def drain(self) -> None:
        """Wait for all that is under way."""
        while self._running:
            await asyncio.wait(self._running)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, whether or not the caller still waits


def backoff_seconds(failures: int, *, first: float = 0.1, most: float = 30.0) -> float:
    """Seconds to the next try when so many have failed in a row: up to ``first`` doubled by each,
    up to ``most``, and drawn from the upper half, so that what failed together does not come back
    together."""
    return min(most, first * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1.0)
