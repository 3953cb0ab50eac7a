"""Background work: it runs to its end, and can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sessionsdb.engine.tasks import BackgroundTasks, start_uncancelled
from tests.support.waiting import until


class Work:
    """Work that lasts until its gate opens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.task: asyncio.Task[object] | None = None
        self.is_done = False

    async def run(self) -> str:
        self.task = asyncio.current_task()
        await self.gate.wait()
        self.is_done = True
        return "done"


Start = Callable[[BackgroundTasks, Work], "asyncio.Task[str]"]


def by_caller(tasks: BackgroundTasks, work: Work) -> asyncio.Task[str]:
    return asyncio.create_task(tasks.finish(work.run()))


def by_uncancelled_task(tasks: BackgroundTasks, work: Work) -> asyncio.Task[str]:
    return start_uncancelled(tasks.finish(work.run()))


async def test_work_outlives_its_cancelled_caller() -> None:
    tasks, work = BackgroundTasks(), Work()
    caller = by_caller(tasks, work)
    await until(lambda: work.task is not None)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not work.is_done
    work.gate.set()
    await tasks.drain()
    assert work.is_done


async def test_work_of_a_task_that_no_caller_can_cancel_gets_no_task_of_its_own() -> None:
    tasks, work = BackgroundTasks(), Work()
    task = by_uncancelled_task(tasks, work)
    await until(lambda: work.task is not None)
    assert work.task is task
    work.gate.set()
    assert await task == "done"


@pytest.mark.parametrize("start", [by_caller, by_uncancelled_task])
async def test_work_in_flight_and_drain_wait_for_the_work_of_now(start: Start) -> None:
    tasks, first, second = BackgroundTasks(), Work(), Work()
    assert tasks.in_flight() is None
    started = start(tasks, first)
    await until(lambda: first.task is not None)
    in_flight, draining = tasks.in_flight(), asyncio.create_task(tasks.drain())
    assert in_flight is not None
    later = start(tasks, second)
    await until(lambda: second.task is not None)
    first.gate.set()
    await in_flight
    assert first.is_done
    assert not second.is_done
    assert not draining.done()
    second.gate.set()
    await draining
    assert second.is_done
    assert await asyncio.gather(started, later) == ["done", "done"]
    assert tasks.in_flight() is None


@pytest.mark.parametrize("start", [by_caller, by_uncancelled_task])
async def test_failed_work_is_raised_and_no_longer_waited_for(start: Start) -> None:
    class Failing(Work):
        async def run(self) -> str:
            raise ValueError("refused")

    tasks = BackgroundTasks()
    with pytest.raises(ValueError, match="refused"):
        await start(tasks, Failing())
    await tasks.drain()
    assert tasks.in_flight() is None
