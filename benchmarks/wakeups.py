"""How long a message waits for an idle worker: from the call of ``send`` to the handler's first
line, with a poll interval of 30 s, so that only a hint can have woken it.

    python -m benchmarks.wakeups
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from sessionsdb import SessionsDB, Turn

BARS_MS = {
    ("SQLite", "another process"): 25.0,
    ("PostgreSQL", "another process"): 10.0,
    ("SQLite", "the same process"): 5.0,
    ("PostgreSQL", "the same process"): 5.0,
}


def table(makers: Mapping[str, Any], *, samples: int) -> Table:
    """Medians for both databases, and the bar each has to stay below."""
    shown = Table(title=f"send to the handler's first line, idle worker, {samples} messages, ms")
    for column in ("database", "worker in", "median", "p95", "worst", "bar", ""):
        shown.add_column(column, justify="left" if column in ("database", "worker in") else "right")
    for name, maker in makers.items():
        for where, measure in (("another process", _apart), ("the same process", _together)):
            with maker.new_database() as database:
                waits = asyncio.run(measure(database.url, samples))
            median = statistics.median(waits)
            bar = BARS_MS[name, where]
            shown.add_row(
                name,
                where,
                f"{median:.2f}",
                f"{statistics.quantiles(waits, n=20)[-1]:.2f}",
                f"{max(waits):.2f}",
                f"{bar:g}",
                "ok" if median < bar else "MISSED",
            )
    return shown


async def _apart(url: str, samples: int) -> list[float]:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.wakeups", "--worker", url),
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    try:
        async with SessionsDB(url) as db:
            await db.broker.register("bench", channel="bench", peer="bench")
            return [await _waited(db, worker.stdout) for _ in range(samples + 10)][10:]
    finally:
        worker.kill()
        await worker.wait()


async def _waited(db: SessionsDB, answers: asyncio.StreamReader) -> float:
    await asyncio.sleep(0.03)  # let the worker go back to sleep, and the hints' pause pass
    called = time.monotonic()
    await db.broker.send("bench", "wake up")
    return (float(await answers.readline()) - called) * 1000


async def _together(url: str, samples: int) -> list[float]:
    began: asyncio.Queue[float] = asyncio.Queue()

    async def handler(turn: Turn) -> None:
        began.put_nowait(time.monotonic())

    waits = []
    async with SessionsDB(url) as db:
        await db.broker.register("bench", channel="bench", peer="bench")
        worker = db.worker(handler, poll_interval=30)
        running = asyncio.create_task(worker.run())
        for _ in range(samples + 10):
            await asyncio.sleep(0.03)
            called = time.monotonic()
            await db.broker.send("bench", "wake up")
            waits.append((await began.get() - called) * 1000)
        await worker.stop()
        await running
    return waits[10:]


async def _work(url: str) -> None:
    async def handler(turn: Turn) -> None:
        sys.stdout.write(f"{time.monotonic()}\n")
        sys.stdout.flush()

    async with SessionsDB(url) as db:
        await db.worker(handler, poll_interval=30).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", metavar="URL", required=True)
    asyncio.run(_work(parser.parse_args().worker))
