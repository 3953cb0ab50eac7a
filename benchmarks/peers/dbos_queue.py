"""DBOS: a workflow for each message, in a queue that runs one workflow of a key at a time.

The key is the session (``queue_partition_key``), so a session's workflows run one after the other.
The workflow has no step and does nothing: it has no transcript. A send is a row. A workflow is
claimed with others in a transaction, and ends with one of its own.

A queue is polled, by default once a second, here 200 times. A poll claims as many workflows as may
run. Between samples the queue may run none (``worker_concurrency`` of 0), and is polled less.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dbos import DBOS, DBOSConfig, SetEnqueueOptions

from benchmarks.cases import SEND, WORK
from benchmarks.filling import Size
from benchmarks.messages import text
from benchmarks.peers import POOL
from devtools.databases import Database

QUEUE = "turns"
INTERVAL = 0.005
"""Seconds between two polls of the queue."""

PAUSE = 0.05
"""The interval of a queue that may run nothing. It starts at most this much later."""


class DbosQueue:
    offers = frozenset((SEND, WORK))

    def __init__(self, database: Database, ids: list[str]) -> None:
        self._database = database
        self._ids = ids
        self._done = self._end = 0
        self._ended = asyncio.Event()
        self.sessions = len(ids)
        loop = asyncio.get_running_loop()

        @DBOS.workflow(name="turn")
        async def turn(message: str) -> None:  # in a loop of DBOS
            self._done += 1
            if self._done == self._end:
                loop.call_soon_threadsafe(self._ended.set)

        self._turn = turn

    async def send(self, session: int, message: str) -> object:
        with SetEnqueueOptions(queue_partition_key=self._ids[session]):
            return await DBOS.enqueue_workflow_async(QUEUE, self._turn, message)

    async def send_many(self, messages: int) -> None:
        for start in range(0, messages, POOL):
            numbers = range(start, min(start + POOL, messages))
            await asyncio.gather(*(self.send(n % self.sessions, text(n)) for n in numbers))

    async def tune(self, messages: int, concurrency: int, what: str) -> None:
        """There are no settings to choose."""

    async def work(self, messages: int, concurrency: int, what: str) -> None:
        self._ended.clear()
        self._end = self._done + messages
        await self._set(concurrency, INTERVAL)
        try:
            await self._ended.wait()
            await self._committed()
        finally:
            await self._set(0, PAUSE)
        assert self._done == self._end, (self._done, self._end)

    async def clear(self, messages: int) -> None:
        await self._database.query("DELETE FROM dbos.workflow_status WHERE status = 'ENQUEUED'")

    async def _set(self, concurrency: int, interval: float) -> None:
        await self._database.query(
            f"UPDATE dbos.queues SET worker_concurrency = {concurrency},"
            f" polling_interval_sec = {interval} WHERE name = '{QUEUE}'"
        )

    async def _committed(self) -> None:
        """Wait until the ends of the last workflows are committed."""
        while True:
            running = await self._database.query(
                "SELECT 1 FROM dbos.workflow_status WHERE status = 'PENDING' LIMIT 1"
            )
            if not running:
                return
            await asyncio.sleep(0.002)


@asynccontextmanager
async def opened(database: Database, size: Size) -> AsyncIterator[DbosQueue]:
    config = DBOSConfig(
        name="bench",
        system_database_url=database.url,
        sys_db_pool_size=POOL,
        log_level="ERROR",
    )
    DBOS(config=config)
    queue = DbosQueue(database, size.ids())
    DBOS.launch()
    try:
        await DBOS.register_queue_async(
            QUEUE, worker_concurrency=1, partition_concurrency=1, polling_interval_sec=PAUSE
        )
        await queue._set(0, PAUSE)
        await asyncio.sleep(1.5)  # DBOS looks for new queues once a second
        yield queue
    finally:
        DBOS.destroy(destroy_registry=True)
