"""The processes group: turns a second with workers in several processes, and a lone append beside a
busy process.

Each worker process has as many slots as the command has by default, so more processes have more
turns at once. The lone append is on SQLite, whose file has one writer at a time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from benchmarks.bench import SQLITE, Bench
from benchmarks.floor import opened_floor
from benchmarks.messages import transcript
from benchmarks.results import FLOOR, OURS
from benchmarks.worker_process import line, started
from devtools.backlog import fill
from devtools.databases import Database
from sessionsdb import SessionsDB

WORKERS = "work off, workers in processes"
MEMORY = "peak memory of a worker process"
BESIDE = "append beside a busy process"

SLOTS = 8
"""Turns at once in each process: the default of ``sessionsdb worker``."""

BUSY_SESSIONS = 256

PAUSE_SECONDS = 0.01
"""Between two appends of the lone caller."""

Append = Callable[[str, list[dict[str, Any]]], Awaitable[object]]


class Drained(NamedTuple):
    rate: float
    """Turns a second, over all processes."""
    peak_mb: float
    """The peak of the largest process."""


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure_workers(bench, database))
    if SQLITE in bench.databases:
        asyncio.run(_measure_beside(bench))


async def drained(database: Database, processes: int, messages: int) -> Drained:
    """Start all workers at once, and measure until the last one is idle."""
    async with AsyncExitStack() as stack:
        workers = await asyncio.gather(
            *(
                stack.enter_async_context(started("drain", database.url, SLOTS))
                for _ in range(processes)
            )
        )
        began = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"go\n")
            await worker.stdin.drain()
        said = [json.loads(told) for told in await asyncio.gather(*map(line, workers))]
        took = time.perf_counter() - began
    assert sum(one["turns"] for one in said) == messages
    return Drained(messages / took, max(one["peak_mb"] for one in said))


def record(
    bench: Bench, what: str, database: str, over: str, size: int, taken: list[Drained]
) -> None:
    """Record the rates and the memory of workers at one size."""
    bench.record(
        what, database=database, side=OURS, unit="turns/s", at={over: size},
        values=[one.rate for one in taken],
    )  # fmt: skip
    bench.record(
        MEMORY, database=database, side=OURS, unit="MB", at={over: size}, better="less",
        values=[one.peak_mb for one in taken],
    )  # fmt: skip


async def _measure_workers(bench: Bench, database: str) -> None:
    counts = (1, 2) if bench.quick else (1, 2, 4, 8)
    waiting = BUSY_SESSIONS * (4 if bench.quick else 32)
    taken: dict[int, list[Drained]] = {count: [] for count in counts}
    for number in range(bench.rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            with bench.new_database(database) as made:
                await fill(made, waiting=waiting, sessions=BUSY_SESSIONS)
                taken[count].append(await drained(made, count, waiting))
    for count in counts:
        record(bench, WORKERS, database, "processes", count, taken[count])


async def _measure_beside(bench: Bench) -> None:
    """Append alone while another process appends with 64 callers without a pause."""
    appends = 20 if bench.quick else 300
    with bench.new_database(SQLITE) as made:
        async with (
            SessionsDB(made.url) as db,
            opened_floor(made) as floor,
            started("append", made.url),
        ):

            async def append_to_floor(session: str, messages: list[dict[str, Any]]) -> None:
                rows = [(message["role"], message["content"], None) for message in messages]
                await floor.append(session, rows)

            sides: dict[str, Append] = {OURS: db.store.append, FLOOR: append_to_floor}
            for side in sides:
                await db.store.append(side, transcript(1))
            taken: dict[str, list[list[float]]] = {side: [] for side in sides}
            for _ in range(bench.rounds):
                for side, append in sides.items():
                    taken[side].append(await _milliseconds(append, side, appends))
    for side, rounds in taken.items():
        for percentile in (50, 99):
            bench.record(
                BESIDE, database=SQLITE, side=side, unit="ms", at={"percentile": f"{percentile}th"},
                values=[statistics.quantiles(one, n=100)[percentile - 1] for one in rounds],
                better="less",
            )  # fmt: skip


async def _milliseconds(append: Append, session: str, appends: int) -> list[float]:
    taken = []
    for number in range(appends):
        began = time.perf_counter()
        await append(session, transcript(1, number))
        taken.append((time.perf_counter() - began) * 1_000)
        await asyncio.sleep(PAUSE_SECONDS)
    return taken
