"""The live group: turns that stream, followers in another process, and work beside them.

64 turns stream 20 pieces a second each. A piece is the time of its call, so a follower knows how
old it is. ``monotonic`` is one clock for all processes of a host.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.bench import Bench
from benchmarks.live_process import CHANNEL, session_of
from benchmarks.results import OURS
from benchmarks.worker_process import line, started
from sessionsdb import SessionsDB, Turn

DELAY, COST, WRITES = "piece to follower", "worker that streams", "writes of a worker that streams"
DURABLE, IDLE = "work off beside 64 streams, share of without", "8 idle workers beside 64 streams"

TURNS, RATE, FOLLOWERS, IDLE_WORKERS = 64, 20, 4, 8
DURABLE_SESSIONS = 64


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure(bench, database))


async def _measure(bench: Bench, database: str) -> None:
    turns, seconds = (4, 1.0) if bench.tiny else (TURNS, 3.0 if bench.quick else 10.0)
    delays: list[list[float]] = []
    streamed: list[Any] = []
    idle: list[float] = []
    shares: list[float] = []
    for _ in range(1 if bench.quick else min(3, bench.rounds)):
        with bench.new_database(database) as made:
            await _fill(made.url, turns)
            async with _process("follow", made.url, turns, FOLLOWERS) as follow:
                streamed.append(await _streaming(made.url, turns, RATE, seconds))
                delays.append((await _ask(follow))["percentiles"])
        with bench.new_database(database) as made:
            await _fill(made.url, turns)
            async with _process("idle", made.url, IDLE_WORKERS) as workers:
                await _streaming(made.url, turns, RATE, seconds)
                idle.append((await _ask(workers))["cores"])
        shares.append(await _durable_share(bench, database, turns, seconds))
    at = {"turns": turns, "pieces a second": turns * RATE}

    def record(what: str, unit: str, values: list[float], **more: Any) -> None:
        bench.record(what, database=database, side=OURS, unit=unit, values=values, at=at, **more)

    record(
        DELAY,
        "ms",
        [one[49] * 1000 for one in delays],
        better="less",
        p99_ms=statistics.median(one[98] for one in delays) * 1000,
    )
    record(COST, "% of a core", [one["cores"] * 100 for one in streamed], better="less")
    record(WRITES, "/s", [one["writes"] / one["seconds"] for one in streamed], better="less")
    record(IDLE, "% of a core", [cores * 100 for cores in idle], better="less")
    record(DURABLE, "of 1", shares)


async def _fill(url: str, turns: int) -> None:
    async with SessionsDB(url) as db:
        for number in range(turns):
            await db.broker.register(session_of(number), channel=CHANNEL, peer="bench")
            await db.broker.send(session_of(number), "go")


@asynccontextmanager
async def _process(*arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    async with started(*arguments, module="benchmarks.live_process") as process:
        yield process


async def _ask(process: asyncio.subprocess.Process) -> Any:
    """Tell a process to go on, and return what it prints."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    return json.loads(await line(process))


async def _streaming(url: str, turns: int, rate: float, seconds: float) -> Any:
    async with _process("stream", url, turns, rate, seconds) as process:
        return await _ask(process)


async def _durable_share(bench: Bench, database: str, turns: int, seconds: float) -> float:
    """Return how fast other turns commit beside streams, as a share of beside silent turns."""
    rates = []
    for rate in (0, RATE):
        with bench.new_database(database) as made:
            await _fill(made.url, turns)
            async with _process("stream", made.url, turns, rate, seconds) as process:
                asking = asyncio.create_task(_ask(process))
                rates.append(await _work_off(made.url, seconds * 0.8))
                await asking
    return rates[1] / rates[0]


async def _work_off(url: str, seconds: float) -> float:
    """Return how many durable turns a second one worker commits."""

    async def handler(turn: Turn) -> str:
        return "done"

    async with SessionsDB(url, namespace="durable") as db:
        ids = [f"s{number}" for number in range(DURABLE_SESSIONS)]
        for id in ids:
            await db.broker.register(id, channel="bench", peer="bench")
        began = time.monotonic()
        committed = 0
        while time.monotonic() - began < seconds:
            await asyncio.gather(*(db.broker.send(id, "go") for id in ids))
            committed += await db.worker(handler, concurrency=64).run_until_idle()
        return committed / (time.monotonic() - began)
