"""The queue group: messages sent and worked off, against peers and against the bare driver.

``send``: each caller sends to sessions of its own. ``work off``: a backlog over 256
sessions is drained by one worker of that concurrency; each turn claims under a lease with an
epoch, writes the message and the reply into the transcript, and commits by the epoch. ``work off,
reading 50`` is the same with handlers that first read the last 50 messages of their session.
``work off, messages kept`` is ``work off`` beside peers whose jobs write the message and the reply
into a table themselves.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol

from benchmarks.bench import POSTGRESQL, Bench, Sample, Sampler, calls
from benchmarks.cases import PAGE, SEND, WORK, WORK_KEEPING, WORK_READING
from benchmarks.filling import Size, fill
from benchmarks.floor import opened_floor
from benchmarks.messages import text
from benchmarks.results import FLOOR, OURS
from devtools.databases import Database
from sessionsdb import SessionsDB, Turn

REPLY = text(2)

CLEARING = 64
"""The concurrency that clears an inbox."""


class Queue(Protocol):
    """A side."""

    offers: frozenset[str]
    sessions: int
    """The number of sessions. Each has a transcript to read the end of."""

    async def send(self, session: int, message: str) -> object: ...

    async def send_many(self, messages: int) -> None:
        """Fill the backlog, evenly over the sessions, in the fastest way."""

    async def tune(self, messages: int, concurrency: int, what: str) -> None:
        """Find the best settings of a case by trial, before the clock runs. ``messages`` wait
        before and after."""

    async def work(self, messages: int, concurrency: int, what: str) -> None:
        """Work off all ``messages``, in the way of the case ``what``."""

    async def clear(self, messages: int) -> None:
        """Remove all ``messages``, in the fastest way."""


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure(bench, database, _sides(bench, database)))


def measure_workflows(bench: Bench) -> None:
    """The workflows group: the same beside engines of workflows, on PostgreSQL."""
    if POSTGRESQL in bench.databases:
        asyncio.run(_measure(bench, POSTGRESQL, _workflows(bench)))


async def _measure(bench: Bench, database: str, wanted: Mapping[str, Any]) -> None:
    size = Size(8, 8, 0) if bench.tiny else Size(256, 256, 0)
    async with AsyncExitStack() as stack:
        queues: dict[str, Queue] = {}
        databases = []
        for side, opened in wanted.items():
            made = stack.enter_context(bench.new_database(database, migrated=side in (OURS, FLOOR)))
            databases.append(made)
            queues[side] = await stack.enter_async_context(opened(made, size))
        keeping = any(WORK_KEEPING in queues[side].offers for side in queues.keys() - {OURS, FLOOR})
        cases = (WORK, WORK_KEEPING, WORK_READING) if keeping else (WORK, WORK_READING)
        for callers in (1, 64) if bench.quick else (1, 16, 64):
            at = {"callers": callers}
            messages = backlog(bench, callers)
            await bench.settle(databases)
            await bench.compare(
                SEND, database=database, at=at,
                samplers={
                    side: sending(queue, callers, bench.seconds)
                    for side, queue in queues.items()
                },
            )  # fmt: skip
            for what in cases:
                await bench.settle(databases)
                await bench.compare(
                    what, database=database, at=at,
                    samplers={
                        side: working(queue, messages, callers, what)
                        for side, queue in queues.items()
                        if what in queue.offers
                    },
                )  # fmt: skip


def backlog(bench: Bench, callers: int) -> int:
    if bench.tiny:
        return 16
    if callers > 1:  # with far fewer the start and the end of the worker are measured
        return 1_024 if bench.quick else 2_048
    return 64 if bench.quick else 256


def sending(queue: Queue, callers: int, seconds: float) -> Sampler:
    """Each caller sends to its sessions in turns. The messages are cleared afterwards, without
    being timed, since an inbox has a limit."""
    numbers = [
        itertools.cycle(range(caller % queue.sessions, queue.sessions, callers))
        for caller in range(callers)
    ]
    message = text(1)
    sample = calls(callers, lambda caller: queue.send(next(numbers[caller]), message), seconds)

    async def sent_and_cleared() -> Sample:
        taken = await sample()
        await queue.clear(len(taken.times))
        return taken

    return sent_and_cleared


def working(queue: Queue, messages: int, concurrency: int, what: str) -> Sampler:
    async def sample() -> Sample:
        await queue.send_many(messages)
        await queue.tune(messages, concurrency, what)
        began = time.perf_counter()
        await queue.work(messages, concurrency, what)
        return Sample(messages / (time.perf_counter() - began))

    return sample


def _sides(bench: Bench, database: str) -> Mapping[str, Any]:
    sides: dict[str, Any] = {OURS: _ours, FLOOR: _floor}
    if database == POSTGRESQL and bench.wants("procrastinate"):
        from benchmarks.peers import procrastinate_jobs

        sides["procrastinate"] = procrastinate_jobs.opened
    if database == POSTGRESQL and bench.wants("pgqueuer"):
        from benchmarks.peers import pgqueuer_jobs

        sides["pgqueuer"] = partial(pgqueuer_jobs.opened, bench)
    return {side: opened for side, opened in sides.items() if bench.wants(side)}


def _workflows(bench: Bench) -> Mapping[str, Any]:
    sides: dict[str, Any] = {OURS: _ours, FLOOR: _floor}
    if bench.wants("dbos"):
        from benchmarks.peers import dbos_queue

        sides["dbos"] = dbos_queue.opened
    if bench.wants("absurd"):
        from benchmarks.peers import absurd_tasks

        sides["absurd"] = partial(absurd_tasks.opened, bench)
    return {side: opened for side, opened in sides.items() if bench.wants(side)}


async def _send_many(queue: Queue, messages: int) -> None:
    await asyncio.gather(
        *(queue.send(number % queue.sessions, text(number)) for number in range(messages))
    )


# ---- ours ------------------------------------------------------------------------------------


class OurQueue:
    offers = frozenset((SEND, WORK, WORK_KEEPING, WORK_READING))

    def __init__(self, db: SessionsDB, ids: list[str]) -> None:
        self._db = db
        self._ids = ids
        self.sessions = len(ids)

    async def send(self, session: int, message: str) -> object:
        return await self._db.broker.send(self._ids[session], message)

    async def send_many(self, messages: int) -> None:
        await _send_many(self, messages)

    async def tune(self, messages: int, concurrency: int, what: str) -> None:
        """There are no settings to choose."""

    async def work(self, messages: int, concurrency: int, what: str) -> None:
        async def reads(turn: Turn) -> str:
            await turn.history(PAGE)
            return REPLY

        async def answers(turn: Turn) -> str:
            return REPLY

        worker = self._db.worker(
            reads if what == WORK_READING else answers, concurrency=concurrency
        )
        committed = await worker.run_until_idle()
        assert committed == messages, (committed, messages)

    async def clear(self, messages: int) -> None:
        await self.work(messages, CLEARING, WORK)


@asynccontextmanager
async def _ours(database: Database, size: Size) -> Any:
    await fill(database, size, sent=True)
    async with SessionsDB(database.url) as db:
        yield OurQueue(db, size.ids())


# ---- the floor -------------------------------------------------------------------------------


class FloorQueue:
    """The bare driver, with a loop that claims up to the concurrency and starts a task each."""

    offers = frozenset((SEND, WORK, WORK_KEEPING, WORK_READING))

    def __init__(self, floor: Any, ids: list[str]) -> None:
        self._floor = floor
        self._ids = ids
        self.sessions = len(ids)

    async def send(self, session: int, message: str) -> object:
        return await self._floor.send(self._ids[session], message)

    async def send_many(self, messages: int) -> None:
        await _send_many(self, messages)

    async def tune(self, messages: int, concurrency: int, what: str) -> None:
        """There are no settings to choose."""

    async def work(self, messages: int, concurrency: int, what: str) -> None:
        floor = self._floor
        ended = asyncio.Event()
        running: set[asyncio.Task[None]] = set()
        left = messages

        async def turn(lease: Any) -> None:
            if what == WORK_READING:
                await floor.history(lease["id"], PAGE)
            held = await floor.commit(
                lease, (("user", lease["text"], None), ("assistant", REPLY, None))
            )
            assert held

        def end(task: asyncio.Task[None]) -> None:
            running.discard(task)
            task.result()
            ended.set()

        while left or running:
            if left and len(running) < concurrency:
                for lease in await floor.claim(concurrency - len(running)):
                    left -= 1
                    task = asyncio.create_task(turn(lease))
                    running.add(task)
                    task.add_done_callback(end)
            await ended.wait()
            ended.clear()

    async def clear(self, messages: int) -> None:
        await self.work(messages, CLEARING, WORK)


@asynccontextmanager
async def _floor(database: Database, size: Size) -> Any:
    await fill(database, size, sent=True)
    async with opened_floor(database) as floor:
        yield FloorQueue(floor, size.ids())
