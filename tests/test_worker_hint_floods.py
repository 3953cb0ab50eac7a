"""Neither a flood of notifications, which any role may send, nor one message makes all claim."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from sessionsdb.engine.notifier import Signal
from sessionsdb.worker.hints import BURST, FRUITLESS_A_SECOND, WorkHints
from tests.support.waiting import until
from tests.support.work import running


@pytest.fixture
def kind() -> str:
    """SQLite has no notifications: each hint there is a commit."""
    return "postgresql"


async def handler(turn: Turn) -> str:
    return "now"


def counted(worker: Any, name: str) -> list[float]:
    """The times of the calls of a method of the worker's loop."""
    calls: list[float] = []
    method = getattr(worker._loop, name)

    async def call(*args: Any) -> Any:
        calls.append(time.monotonic())
        return await method(*args)

    setattr(worker._loop, name, call)
    return calls


async def test_a_flood_of_notifications_does_not_keep_a_worker_claiming(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    async with running(db, handler, poll_interval=3_600) as worker:
        claims = counted(worker, "_claim")
        began = time.monotonic()
        for _ in range(40):
            for _ in range(20):
                await database.query("NOTIFY sessionsdb, 'work done stop'")
            if len(claims) > 2 * BURST:
                break
        took = time.monotonic() - began
        assert len(claims) <= BURST + took * FRUITLESS_A_SECOND + 2, (len(claims), took)
        # Work is still found at once, by its own hint or the one that is on its way.
        receipt = await db.broker.send("chat", "hello")
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"
        assert await until(lambda: claims)


async def test_hints_are_passed_on_at_once_unless_they_lead_to_nothing() -> None:
    now = 0.0
    wakeup = Signal()
    work = WorkHints(wakeup, clock=lambda: now, uniform=min)
    for _ in range(BURST):
        work.set()
        assert await wakeup.wait(0)
        work.was_fruitless()
    work.set()
    assert not await wakeup.wait(0), "it is held back"
    work.set()
    async with asyncio.timeout(10):
        assert await wakeup.wait(5), "and passed on"
    work.was_fruitful()
    work.set()
    assert await wakeup.wait(0)
    for _ in range(BURST):
        work.was_fruitless()
    now += 1 / FRUITLESS_A_SECOND
    work.set()
    assert await wakeup.wait(0), "one is earned again"
    work.close()


async def test_the_longest_time_to_stand_back_grows_with_the_number_of_other_workers() -> None:
    asked: list[float] = []

    def longest(low: float, high: float) -> float:
        asked.append(high)
        return low

    def told(workers: int, messages: int = 400) -> float:
        """Each worker gets an equal share of the messages. Return what the next hint asks for."""
        work = WorkHints(Signal(), uniform=longest)
        for number in range(messages):
            (work.was_fruitless if number % workers else work.was_fruitful)()
        asked.clear()
        work.set()
        return asked[0] if asked else 0.0

    assert told(1) == 0.0
    few, many = told(4), told(12)
    assert 0 < few < many < 0.058
    assert told(10**9) < 0.058


async def test_of_many_idle_workers_few_claim_for_one_message(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(running(db, handler, poll_interval=3_600))
            for _ in range(8)
        ]
        claims = [counted(worker, "_claim") for worker in workers]
        numbers = []
        for _ in range(60):
            before = sum(map(len, claims))
            receipt = await db.broker.send("chat", "hello")
            assert (await db.broker.wait(receipt, timeout=20)).status == "done"
            numbers.append(sum(map(len, claims)) - before)
        # The workers learn of one another from the first messages.
        assert statistics.mean(numbers[30:]) < 5, numbers
