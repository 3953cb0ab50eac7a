"""pgqueuer: a job for each message. It keeps no order within a session and has no transcript. Its
jobs do nothing, or write the message and the reply into a table by a connection of the pool. At
most as many run at once as turns do at the concurrency that is measured; the batch size is the best
of a sweep under this limit."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
from pgqueuer.domain.types import QueueExecutionMode
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from benchmarks.bench import Bench
from benchmarks.cases import SEND, WORK, WORK_KEEPING
from benchmarks.filling import Size
from benchmarks.messages import text
from benchmarks.peers import POOL, kept_messages
from benchmarks.peers.kept_messages import REPLY
from devtools.databases import Database

INSERT = kept_messages.insert("$1", "$2", "$3")


class Settings(NamedTuple):
    batch: int
    dequeuers: int
    limit: int | None
    """The most jobs that each dequeuer runs at once: at least two batches."""

    def __str__(self) -> str:
        return f"{self.batch}×{self.dequeuers}"


UNLIMITED = Settings(250, 1, None)
"""The best settings without a limit, for comparison."""


class PgQueuer:
    offers = frozenset((SEND, WORK, WORK_KEEPING))

    def __init__(self, bench: Bench, pool: asyncpg.Pool, sessions: int) -> None:
        self._bench = bench
        self._pool = pool
        self._queries = Queries(AsyncpgPoolDriver(pool))
        self._best: dict[tuple[str, int], Settings] = {}
        self._keeps = False
        self._done = 0
        self.sessions = sessions

    async def send(self, session: int, message: str) -> object:
        return await self._queries.enqueue("turn", _payload(session, message))

    async def send_many(self, messages: int) -> None:
        await self._queries.enqueue(
            ["turn"] * messages,
            [_payload(number % self.sessions, text(number)) for number in range(messages)],
            [0] * messages,
        )

    async def tune(self, messages: int, concurrency: int, what: str) -> None:
        self._keeps = what == WORK_KEEPING
        if (what, concurrency) not in self._best:
            await self._sweep(messages, concurrency, what)

    async def work(self, messages: int, concurrency: int, what: str) -> None:
        self._keeps = what == WORK_KEEPING
        await self._drain(messages, self._best.get((what, concurrency), _limited(concurrency)[0]))

    async def clear(self, messages: int) -> None:
        await self._queries.clear_queue()

    async def _sweep(self, messages: int, concurrency: int, what: str) -> None:
        """Find the best settings. The same number of jobs waits before and after."""
        rates = {
            settings: await self._rate(messages, settings) for settings in _limited(concurrency)
        }
        best = self._best[what, concurrency] = max(rates, key=lambda settings: rates[settings])
        if concurrency > 1:
            shown = ", ".join(f"{settings}: {rate:,.0f}" for settings, rate in rates.items())
            unlimited = await self._rate(messages, UNLIMITED)
            self._bench.note(
                f"pgqueuer, {what} at {concurrency}: batch size {best.batch} with {best.dequeuers}"
                f" dequeuers was best of (batch size × dequeuers: jobs/s) {shown}; without a limit"
                f" on how many run at once, {UNLIMITED}: {unlimited:,.0f}"
            )

    async def _rate(self, messages: int, settings: Settings) -> float:
        began = time.perf_counter()
        await self._drain(messages, settings)
        rate = messages / (time.perf_counter() - began)
        await self.send_many(messages)
        return rate

    async def _drain(self, messages: int, settings: Settings) -> None:
        before = self._done
        await asyncio.gather(*(self._run_one(settings) for _ in range(settings.dequeuers)))
        assert self._done - before == messages, (self._done - before, messages)

    async def _run_one(self, settings: Settings) -> None:
        manager = QueueManager(Queries(AsyncpgPoolDriver(self._pool)))

        @manager.entrypoint("turn")
        async def turn(job: Any) -> None:
            if self._keeps:
                session, message = job.payload.decode().split("\n", 1)
                await self._pool.execute(INSERT, int(session), message, REPLY)
            self._done += 1

        await manager.run(
            batch_size=settings.batch,
            max_concurrent_tasks=settings.limit,
            mode=QueueExecutionMode.drain,
        )


def _payload(session: int, message: str) -> bytes:
    return f"{session}\n{message}".encode()


def _limited(concurrency: int) -> list[Settings]:
    """The settings for this concurrency, the largest batches first. pgqueuer runs at least two jobs
    at once."""
    settings = []
    for dequeuers in (1, 2) if concurrency > 1 else (1,):
        limit = max(2, concurrency // dequeuers)
        settings += [
            Settings(batch, dequeuers, limit) for batch in (limit // 2, limit // 4) if batch
        ]
    return settings


@asynccontextmanager
async def opened(bench: Bench, database: Database, size: Size) -> Any:
    logging.getLogger("pgqueuer").setLevel(logging.ERROR)
    async with asyncpg.create_pool(database.url, min_size=POOL, max_size=POOL) as pool:
        queue = PgQueuer(bench, pool, size.sessions)
        await queue._queries.install()
        await pool.execute(kept_messages.TABLE)
        yield queue
