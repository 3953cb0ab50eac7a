"""absurd: a task for each message, by functions in the database. It has no keys and keeps no order
within a session. Its tasks have no step and do nothing.

A spawn is a transaction, and so is each claim of a batch and each end of a task. A client has one
connection, which runs one statement at a time. The number of workers, each with a client, is the
best of a sweep. All of them together run as many tasks at once as turns do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
from absurd_sdk import AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL

from benchmarks.bench import Bench
from benchmarks.cases import SEND, WORK
from benchmarks.filling import Size
from benchmarks.messages import text
from benchmarks.peers import POOL
from devtools.databases import Database

TASK, QUEUE = "turn", "turns"
WORKERS = (1, 4, 16)


class AbsurdTasks:
    offers = frozenset((SEND, WORK))

    def __init__(
        self, bench: Bench, database: Database, clients: Sequence[AsyncAbsurd], sessions: int
    ) -> None:
        self._bench = bench
        self._database = database
        self._clients = clients
        self._best: dict[int, int] = {}
        self._done = self._end = 0
        self._ended = asyncio.Event()
        self.sessions = sessions

        async def turn(_params: Any, _context: Any) -> None:
            self._done += 1
            if self._done == self._end:
                self._ended.set()

        for client in clients:
            client.register_task(TASK)(turn)

    async def send(self, session: int, message: str) -> object:
        client = self._clients[session % len(self._clients)]
        return await client.spawn(TASK, {"session": session, "message": message})

    async def send_many(self, messages: int) -> None:
        numbers = range(messages)
        await asyncio.gather(*(self.send(number, text(number)) for number in numbers))

    async def tune(self, messages: int, concurrency: int) -> None:
        if concurrency == 1 or concurrency in self._best:
            return
        rates = {}
        for workers in WORKERS:
            self._best[concurrency] = workers
            began = time.perf_counter()
            await self.work(messages, concurrency, reading=False)
            rates[workers] = messages / (time.perf_counter() - began)
            await self.send_many(messages)
        self._best[concurrency] = max(rates, key=lambda workers: rates[workers])
        shown = ", ".join(f"{workers}: {rate:,.0f}" for workers, rate in rates.items())
        self._bench.note(f"absurd at {concurrency}: tasks/s by the number of workers: {shown}")

    async def work(self, messages: int, concurrency: int, *, reading: bool) -> None:
        self._ended.clear()
        self._end = self._done + messages
        workers = self._clients[: self._best.get(concurrency, 1)]
        each = concurrency // len(workers)
        running = [
            asyncio.create_task(
                client.start_worker(worker_id=str(number), concurrency=each, poll_interval=0.01)
            )
            for number, client in enumerate(workers)
        ]
        await self._ended.wait()
        for client in workers:
            client.stop_worker()
        await asyncio.gather(*running)  # the ends of the last tasks are committed
        assert self._done == self._end, (self._done, self._end)

    async def clear(self, messages: int) -> None:
        await self._database.query(f"TRUNCATE absurd.t_{QUEUE}, absurd.r_{QUEUE}")


@asynccontextmanager
async def opened(bench: Bench, database: Database, size: Size) -> AsyncIterator[AbsurdTasks]:
    async with AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(
                await psycopg.AsyncConnection.connect(database.url, autocommit=True)
            )
            for _ in range(POOL)
        ]
        await connections[0].execute(BUNDLED_SCHEMA_SQL)
        clients = [AsyncAbsurd(one, queue_name=QUEUE) for one in connections]
        await clients[0].create_queue(QUEUE)
        yield AbsurdTasks(bench, database, clients, size.sessions)
