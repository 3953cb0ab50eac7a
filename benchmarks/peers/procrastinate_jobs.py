"""procrastinate: a job for each message, with the session as its lock, so that a session's jobs
run one after the other and in their order. The job does nothing: it has no transcript."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from typing import Any

import procrastinate

from benchmarks.cases import SEND, WORK, WORK_READING
from benchmarks.filling import Size
from benchmarks.messages import text
from benchmarks.peers import POOL
from devtools.databases import Database


class Procrastinate:
    offers = frozenset((SEND, WORK, WORK_READING))

    def __init__(self, app: procrastinate.App, ids: list[str]) -> None:
        self._app = app
        self._done = 0
        self.sessions = len(ids)

        @app.task(name="turn", queue="bench")
        async def turn(message: str) -> None:
            self._done += 1

        self._tasks = [turn.configure(lock=id) for id in ids]

    async def send(self, session: int, message: str) -> object:
        return await self._tasks[session].defer_async(message=message)

    async def send_many(self, messages: int) -> None:
        numbers = itertools.count()
        for task in self._tasks:
            each = -(-(messages - next(numbers)) // len(self._tasks))
            if each > 0:
                await task.batch_defer_async(*({"message": text(n)} for n in range(each)))

    async def tune(self, messages: int, concurrency: int, what: str) -> None:
        """There are no settings to choose."""

    async def work(self, messages: int, concurrency: int, what: str) -> None:
        end = self._done + messages
        # A worker without a free job stops, also when running jobs lock all waiting ones.
        while self._done < end:
            await self._app.run_worker_async(
                queues=["bench"],
                wait=False,
                concurrency=concurrency,
                install_signal_handlers=False,
            )
        assert self._done == end

    async def clear(self, messages: int) -> None:
        await self._app.connector.execute_query_async(
            "DELETE FROM procrastinate_jobs WHERE status = 'todo'"
        )


@asynccontextmanager
async def opened(database: Database, size: Size) -> Any:
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(
            conninfo=database.url, min_size=POOL, max_size=POOL
        )
    )
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield Procrastinate(app, size.ids())
