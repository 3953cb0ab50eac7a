"""Cancel a call at every point where it can be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any


class _CancelledAtAwait:
    """Runs a coroutine and cancels its task at the nth await."""

    def __init__(self, work: Coroutine[Any, Any, Any], nth: int) -> None:
        self._work = work
        self._left = nth

    def __await__(self) -> Generator[Any, Any, Any]:
        send: Callable[[Any], Any] = self._work.send
        value: Any = None
        while True:
            try:
                waited_for = send(value)
            except StopIteration as done:
                return done.value
            self._left -= 1
            if self._left == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                value, send = (yield waited_for), self._work.send
            except BaseException as error:
                value, send = error, self._work.throw


async def finishes_before_await(call: Callable[[], Coroutine[Any, Any, Any]], nth: int) -> bool:
    """Cancel a call at its ``nth`` await. Return whether it had finished before."""

    async def stepped() -> Any:
        return await _CancelledAtAwait(call(), nth)

    return await _finished(asyncio.create_task(stepped()))


async def finishes_within(call: Callable[[], Coroutine[Any, Any, Any]], seconds: float) -> bool:
    """Cancel a call after ``seconds``. Return whether it had finished before."""
    task = asyncio.create_task(call())
    await asyncio.wait((task,), timeout=seconds)
    task.cancel()
    return await _finished(task)


async def _finished(task: asyncio.Task[Any]) -> bool:
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


Check = Callable[[bool], Awaitable[None]]


async def cancel_everywhere(
    call: Callable[[], Coroutine[Any, Any, Any]], check: Check, *, step: float = 0.000_5
) -> int:
    """Cancel a call at its first await, its second, … and after ever longer times, until it
    finishes. ``check`` gets whether it finished, each time. Return how often it was cancelled."""
    cancelled = 0
    for way, size in ((finishes_before_await, 1), (finishes_within, step)):
        for n in range(1, 1_000):
            finished = await way(call, n * size)
            await check(finished)
            if finished:
                break
            cancelled += 1
        else:
            raise AssertionError("it never finished")
    return cancelled
