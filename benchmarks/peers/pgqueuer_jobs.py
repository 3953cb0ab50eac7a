"""pgqueuer: a job for each message. It keeps no order within a session and has no transcript: its
jobs do nothing. The batch size is the best of a sweep, at the concurrency that is measured."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
from pgqueuer.domain.types import QueueExecutionMode
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from benchmarks.bench import Bench
from benchmarks.filling import Size
from benchmarks.messages import text
from benchmarks.peers import POOL
from benchmarks.queue import SEND, WORK
from tests.support.databases import Database

BATCHES = (1, 10, 25, 50, 100, 250)
DEQUEUERS = (1, 5)


class PgQueuer:
    offers = frozenset((SEND, WORK))

    def __init__(self, bench: Bench, pool: asyncpg.Pool, sessions: int) -> None:
        self._bench = bench
        self._pool = pool
        self._queries = Queries(AsyncpgPoolDriver(pool))
        self._best: dict[int, tuple[int, int]] = {}
        self._done = 0
        self.sessions = sessions

    async def send(self, session: int, message: str) -> object:
        return await self._queries.enqueue("turn", message.encode())

    async def send_many(self, messages: int) -> None:
        await self._queries.enqueue(
            ["turn"] * messages,
            [text(number).encode() for number in range(messages)],
            [0] * messages,
        )

    async def tune(self, messages: int, concurrency: int) -> None:
        if concurrency not in self._best:
            await self._sweep(messages, concurrency)

    async def work(self, messages: int, concurrency: int, *, reading: bool) -> None:
        await self._drain(messages, *self._best.get(concurrency, (10, 1)))

    async def _sweep(self, messages: int, concurrency: int) -> None:
        """Find the best settings; what is waiting when this begins is waiting when it ends."""
        rates: dict[tuple[int, int], float] = {}
        for dequeuers in DEQUEUERS if concurrency > 1 else (1,):
            for batch in BATCHES if concurrency > 1 else (1,):
                began = time.perf_counter()
                await self._drain(messages, batch, dequeuers)
                rates[batch, dequeuers] = messages / (time.perf_counter() - began)
                await self.send_many(messages)
        best = max(rates, key=lambda settings: rates[settings])
        self._best[concurrency] = best
        if concurrency > 1:
            shown = ", ".join(f"{b}×{d}: {rate:,.0f}" for (b, d), rate in rates.items())
            self._bench.note(
                f"pgqueuer at {concurrency}: batch size {best[0]} with {best[1]} dequeuers was"
                f" best of (batch size × dequeuers: jobs/s) {shown}"
            )

    async def _drain(self, messages: int, batch: int, dequeuers: int) -> None:
        before = self._done
        await asyncio.gather(*(self._run_one(batch) for _ in range(dequeuers)))
        assert self._done - before == messages, (self._done - before, messages)

    async def _run_one(self, batch: int) -> None:
        manager = QueueManager(Queries(AsyncpgPoolDriver(self._pool)))

        @manager.entrypoint("turn")
        async def turn(job: Any) -> None:
            self._done += 1

        await manager.run(batch_size=batch, mode=QueueExecutionMode.drain)


@asynccontextmanager
async def opened(bench: Bench, database: Database, size: Size) -> Any:
    logging.getLogger("pgqueuer").setLevel(logging.ERROR)
    async with asyncpg.create_pool(database.url, min_size=POOL, max_size=POOL) as pool:
        queue = PgQueuer(bench, pool, size.sessions)
        await queue._queries.install()
        yield queue
