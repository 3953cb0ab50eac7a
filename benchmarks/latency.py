"""The latency group: the time from ``send`` to the first line of the handler, and to the reply.

The worker runs in another process or in the same one, idle or with half of the load that this
machine sustains on other sessions. Workers poll every 30 s, so only a notification wakes them.
``monotonic`` is one clock for all processes of a host.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable

from benchmarks.bench import Bench
from benchmarks.results import OURS
from benchmarks.worker_process import PING, line, started
from sessionsdb import SessionsDB, Turn

HANDLER, REPLY = "send to the handler", "send to its reply awaited"

WARM_UP = 5

PAUSE_SECONDS = 0.03
"""Before each ping: the worker goes back to sleep, and the pause between hints passes."""

Began = Callable[[], Awaitable[float]]
"""Returns the start of the handler of the last ping."""


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure(bench, database))


async def _measure(bench: Bench, database: str) -> None:
    pings = 10 if bench.quick else 60
    rounds = min(2, bench.rounds) if bench.quick else bench.rounds  # each starts a process
    taken: dict[tuple[str, str], list[Pings]] = {}
    with bench.new_database(database) as made:
        async with SessionsDB(made.url) as db, started("answer", made.url) as worker:
            await db.broker.register("bench", channel="bench", peer="bench")

            async def began() -> float:
                return float(await line(worker))

            await _pings(db, began, WARM_UP)
            sustained = await _sustained(made.url)
            for _ in range(rounds):
                apart = taken.setdefault(("another process", "idle"), [])
                apart.append(await _pings(db, began, pings))
                async with started("load", made.url, sustained / 2):
                    loaded = taken.setdefault(("another process", "half"), [])
                    await _pings(db, began, WARM_UP)
                    loaded.append(await _pings(db, began, pings))
    with bench.new_database(database) as made:
        taken["the same process", "idle"] = await _together(made.url, rounds, pings)

    bench.note(
        f"{database}: half load is {sustained / 2:,.0f} messages a second, sent by a third process"
    )
    for (where, load), rounds in taken.items():
        for what, place in ((HANDLER, 0), (REPLY, 1)):
            times = [seconds for one in rounds for seconds in one[place]]
            bench.record(
                what,
                database=database,
                side=OURS,
                unit="ms",
                values=[statistics.median(one[place]) * 1000 for one in rounds],
                at={"worker": where, "load": load},
                better="less",
                p99_ms=statistics.quantiles(times, n=100)[-1] * 1000,
            )


Pings = tuple[list[float], list[float]]
"""Seconds to the handler, and to the reply, of each ping."""


async def _pings(db: SessionsDB, began: Began, count: int) -> Pings:
    to_handler, to_reply = [], []
    for _ in range(count):
        await asyncio.sleep(PAUSE_SECONDS)
        called = time.monotonic()
        receipt = await db.broker.send("bench", PING)
        outcome = await db.broker.wait(receipt, timeout=60)
        to_reply.append(time.monotonic() - called)
        assert outcome.status == "done", outcome
        to_handler.append(await began() - called)
    return to_handler, to_reply


async def _sustained(url: str) -> float:
    """The load that one worker process sustains, at its default concurrency."""
    loader: Process
    async with started("load", url, 0) as loader:
        return float(await line(loader))


async def _together(url: str, rounds: int, pings: int) -> list[Pings]:
    stamps: asyncio.Queue[float] = asyncio.Queue()

    async def handler(turn: Turn) -> str:
        stamps.put_nowait(time.monotonic())
        return turn.text

    async with SessionsDB(url) as db:
        await db.broker.register("bench", channel="bench", peer="bench")
        worker = db.worker(handler, poll_interval=30)
        running = asyncio.create_task(worker.run())
        await _pings(db, stamps.get, WARM_UP)
        taken = [await _pings(db, stamps.get, pings) for _ in range(rounds)]
        await worker.stop()
        await running
    return taken
