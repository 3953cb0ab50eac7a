"""The measured process of ``benchmarks/cpu.py``: fixed pieces of work on one database.

Each line of the input is a JSON array: a case and its number of callers. Each line of the output is
a JSON object: CPU microseconds for each operation, of this process and of the server. The file uses
only public names, so that it runs on older versions of the package too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.filling import Size, fill
from benchmarks.messages import text, transcript
from devtools.databases import Database
from sessionsdb import SessionsDB, Turn

SIZE = Size(256, 256, 0)
MESSAGES = 256
PAGE = 50
REPLY = text(2)
TWO = transcript(2)


class Cases:
    def __init__(self, database: Database, db: SessionsDB) -> None:
        self._database = database
        self._db = db
        self._ids = SIZE.ids()

    async def _each(self, callers: int, operation: Callable[[int], Awaitable[object]]) -> None:
        async def caller(first: int) -> None:
            for number in range(first, MESSAGES, callers):
                await operation(number)

        await asyncio.gather(*(caller(first) for first in range(callers)))

    def _id(self, number: int) -> str:
        return self._ids[number % len(self._ids)]

    async def send(self, callers: int) -> None:
        await self._each(callers, lambda n: self._db.broker.send(self._id(n), text(1)))

    async def work(self, callers: int) -> None:
        async def answers(turn: Turn) -> str:
            return REPLY

        await self._work(answers, callers)

    async def reading(self, callers: int) -> None:
        async def reads(turn: Turn) -> str:
            await turn.history(PAGE)
            return REPLY

        await self._work(reads, callers)

    async def _work(self, handler: Callable[[Turn], Awaitable[str]], callers: int) -> None:
        worker = self._db.worker(handler, concurrency=callers)
        committed = await worker.run_until_idle()
        assert committed == MESSAGES, committed

    async def append(self, callers: int) -> None:
        await self._each(callers, lambda n: self._db.store.append(self._id(n), TWO))

    async def history(self, callers: int) -> None:
        await self._each(callers, lambda n: self._db.broker.history(self._id(n), PAGE))

    async def update(self, callers: int) -> None:
        await self._each(callers, lambda n: self._db.broker.update(self._id(n), model=text(1)))

    async def list(self, callers: int) -> None:
        await self._each(callers, lambda n: self._db.broker.list(limit=PAGE))


async def _server_nanoseconds(database: Database) -> int:
    """The CPU time of the server's processes that are connected to the database."""
    if database.kind == "sqlite":
        return 0
    pids = await database.query(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return sum(_process_nanoseconds(pid) for [pid] in pids)


def _process_nanoseconds(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


async def main(kind: str, url: str) -> None:
    database = Database(kind, url)
    async with SessionsDB(url, migrate=True):
        pass
    await fill(database, SIZE, sent=True)
    async with SessionsDB(url) as db:
        cases = Cases(database, db)
        print(json.dumps("ready"), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            case, callers = json.loads(line)
            if case == "vacuum":
                if kind == "postgresql":
                    await database.query("VACUUM ANALYZE")
                print(json.dumps({}), flush=True)
                continue
            gc.collect()
            gc.freeze()
            server = await _server_nanoseconds(database)
            wall, own = time.perf_counter_ns(), time.process_time_ns()
            await getattr(cases, case)(callers)
            wall, own = time.perf_counter_ns() - wall, time.process_time_ns() - own
            server = await _server_nanoseconds(database) - server
            taken = {"process": own, "server": server, "wall": wall}
            print(
                json.dumps({name: ns / 1_000 / MESSAGES for name, ns in taken.items()}), flush=True
            )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
