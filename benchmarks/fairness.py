"""The fairness group: how long a message of one namespace waits behind the backlog of another one.

One worker serves both namespaces with 8 slots. A turn of the large namespace takes 100 ms, as long
as a very fast model. With shared slots a new message waits for the next free slot at most, so about
100 ms, however large the backlog is.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.bench import Bench
from benchmarks.results import OURS
from sessionsdb import SessionsDB, Turn

WHAT = "wait behind another namespace"
TURN_SECONDS = 0.1
BACKLOGS = (200, 2_000)
"""Ready sessions of the large namespace."""


def measure(bench: Bench) -> None:
    for database in bench.databases:
        for backlog in (50,) if bench.tiny else BACKLOGS:
            asyncio.run(_measure(bench, database, backlog))


async def _measure(bench: Bench, database: str, backlog: int) -> None:
    pings = 3 if bench.quick else 10
    medians = []
    with bench.new_database(database) as made:
        async with SessionsDB(made.url, namespace="small") as db:
            await db.broker.register("s", channel="bench", peer="bench")
            for _ in range(bench.rounds):
                await _fill(db.in_namespace("large"), backlog)
                medians.append(statistics.median(await _wait_behind(db, pings)) * 1000)
    bench.record(
        WHAT,
        database=database,
        side=OURS,
        unit="ms",
        values=medians,
        at={"ready sessions": backlog},
        better="less",
    )


async def _fill(db: SessionsDB, backlog: int) -> None:
    """Give each session of the large namespace one more message."""
    for some in _hundreds(backlog):
        await asyncio.gather(
            *(db.broker.register(id, channel="bench", peer="", exist_ok=True) for id in some)
        )
        await asyncio.gather(*(db.broker.send(id, "work") for id in some))


async def _wait_behind(db: SessionsDB, pings: int) -> list[float]:
    """Return the seconds from ``send`` to the handler while the worker has a backlog."""
    began: asyncio.Queue[float] = asyncio.Queue()

    async def handler(turn: Turn) -> None:
        if turn.namespace == "small":
            began.put_nowait(time.monotonic())
        else:
            await asyncio.sleep(TURN_SECONDS)

    waited = []
    worker = db.worker(handler, namespaces=["large", "small"], concurrency=8)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        for _ in range(pings):
            called = time.monotonic()
            await db.broker.send("s", "ping")
            waited.append(await began.get() - called)
        await worker.stop(grace=1.0)
    return waited


def _hundreds(count: int) -> list[list[str]]:
    ids = [f"large-{number}" for number in range(count)]
    return [ids[begin : begin + 100] for begin in range(0, count, 100)]
