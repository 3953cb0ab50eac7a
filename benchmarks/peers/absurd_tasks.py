"""absurd: a task for each message, by functions in the database. It has no keys and keeps no order
within a session. Its tasks have no step. They do nothing, or write the message and the reply into a
table by the connection of their worker.

A spawn is a transaction, and so is each claim of a batch and each end of a task. A client has one
connection, which runs one statement at a time. The number of workers, each with a client, is the
best of a sweep. All of them together run as many tasks at once as turns do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from absurd_sdk import AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL
from psycopg import AsyncConnection

from benchmarks.bench import Bench
from benchmarks.cases import SEND, WORK, WORK_KEEPING
from benchmarks.filling import Size
from benchmarks.messages import text
from benchmarks.peers import POOL, kept_messages
from benchmarks.peers.kept_messages import REPLY
from devtools.databases import Database

TASK, QUEUE = "turn", "turns"
INSERT = kept_messages.insert("%(session)s", "%(message)s", "%(reply)s")
WORKERS = (1, 4, 16)


class AbsurdTasks:
    offers = frozenset((SEND, WORK, WORK_KEEPING))

    def __init__(
        self,
        bench: Bench,
        database: Database,
        connections: Sequence[AsyncConnection],
        sessions: int,
    ) -> None:
        clients = [AsyncAbsurd(connection, queue_name=QUEUE) for connection in connections]
        self._bench = bench
        self._database = database
        self._clients = clients
        self._best: dict[tuple[str, int], int] = {}
        self._keeps = False
        self._done = self._end = 0
        self._ended = asyncio.Event()
        self.sessions = sessions

        async def turn(connection: AsyncConnection, params: Any, _context: Any) -> None:
            if self._keeps:
                await connection.execute(INSERT, {**params, "reply": REPLY})
            self._done += 1
            if self._done == self._end:
                self._ended.set()

        for client, connection in zip(clients, connections, strict=True):
            client.register_task(TASK)(partial(turn, connection))

    async def send(self, session: int, message: str) -> object:
        client = self._clients[session % len(self._clients)]
        return await client.spawn(TASK, {"session": session, "message": message})

    async def send_many(self, messages: int) -> None:
        await asyncio.gather(
            *(self.send(number % self.sessions, text(number)) for number in range(messages))
        )

    async def tune(self, messages: int, concurrency: int, what: str) -> None:
        if concurrency == 1 or (what, concurrency) in self._best:
            return
        rates = {}
        for workers in WORKERS:
            self._best[what, concurrency] = workers
            began = time.perf_counter()
            await self.work(messages, concurrency, what)
            rates[workers] = messages / (time.perf_counter() - began)
            await self.send_many(messages)
        self._best[what, concurrency] = max(rates, key=lambda workers: rates[workers])
        shown = ", ".join(f"{workers}: {rate:,.0f}" for workers, rate in rates.items())
        self._bench.note(
            f"absurd, {what} at {concurrency}: tasks/s by the number of workers: {shown}"
        )

    async def work(self, messages: int, concurrency: int, what: str) -> None:
        self._keeps = what == WORK_KEEPING
        self._ended.clear()
        self._end = self._done + messages
        workers = self._clients[: self._best.get((what, concurrency), 1)]
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
                await AsyncConnection.connect(database.url, autocommit=True)
            )
            for _ in range(POOL)
        ]
        await connections[0].execute(BUNDLED_SCHEMA_SQL)
        await connections[0].execute(kept_messages.TABLE)
        tasks = AbsurdTasks(bench, database, connections, size.sessions)
        await tasks._clients[0].create_queue(QUEUE)
        yield tasks
