"""Turns a second with workers in 1 to 8 processes, and with 100,000 sessions, and the memory of
the workers."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.results import OURS
from benchmarks.worker_process import line, started
from devtools.backlog import fill
from devtools.databases import Database

PROCESSES = "work off, workers in processes"
SESSIONS = "work off, a message in each session"
MEMORY = "peak memory of a worker process"

SLOTS = 32
"""Turns at once, over all processes."""

BUSY_SESSIONS = 256


class Drained(NamedTuple):
    rate: float
    """Turns a second, over all processes."""
    peak_mb: float
    """The peak of the largest process."""


async def measure(bench: Bench, database: str) -> None:
    counts = (1, 2) if bench.quick else (1, 2, 4, 8)
    each = 4 if bench.quick else 32
    rates: dict[int, list[Drained]] = {count: [] for count in counts}
    for number in range(1 if bench.quick else max(1, bench.rounds // 2)):
        for count in counts if number % 2 == 0 else reversed(counts):
            with bench.new_database(database) as made:
                await fill(made, waiting=BUSY_SESSIONS * each, sessions=BUSY_SESSIONS)
                rates[count].append(await _drained(made, count, BUSY_SESSIONS * each))
    _record(bench, PROCESSES, database, "processes", rates)

    crowds = (1_000, 5_000) if bench.quick else (1_000, 100_000)
    crowded: dict[int, list[Drained]] = {}
    for sessions in crowds:
        with bench.new_database(database) as made:
            await fill(made, waiting=sessions, sessions=sessions)
            crowded[sessions] = [await _drained(made, 1, sessions)]
    _record(bench, SESSIONS, database, "sessions", crowded)


def _record(
    bench: Bench, what: str, database: str, over: str, taken: dict[int, list[Drained]]
) -> None:
    for size, drained in taken.items():
        bench.record(
            what, database=database, side=OURS, unit="turns/s", at={over: size},
            values=[one.rate for one in drained],
        )  # fmt: skip
        bench.record(
            MEMORY, database=database, side=OURS, unit="MB", at={over: size}, better="less",
            values=[one.peak_mb for one in drained],
        )  # fmt: skip


async def _drained(database: Database, processes: int, messages: int) -> Drained:
    """Start all workers at once, and measure until the last one is idle."""
    async with AsyncExitStack() as stack:
        workers = await asyncio.gather(
            *(
                stack.enter_async_context(
                    started("drain", database.url, max(1, SLOTS // processes))
                )
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
