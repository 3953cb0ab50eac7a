"""A process of its own for the live group: a worker that streams, followers, or idle workers.

python -m benchmarks.live_process stream URL TURNS RATE SECONDS
python -m benchmarks.live_process follow URL TURNS FOLLOWERS
python -m benchmarks.live_process idle URL WORKERS

Each says when it is ready, waits for a line on stdin, and prints its results as JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

from sessionsdb import DeltaEvent, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.runtime.open_database import OpenDatabase

CHANNEL = "live"


def session_of(number: int) -> str:
    return f"live-{number}"


def _say(what: object) -> None:
    print(what, flush=True)


async def _told() -> None:
    await asyncio.to_thread(sys.stdin.readline)


class _Costs:
    """The processor time of this process, since the object was made."""

    def __init__(self) -> None:
        self._began, self._cpu = time.monotonic(), time.process_time()

    def report(self, **more: Any) -> str:
        seconds = time.monotonic() - self._began
        cores = (time.process_time() - self._cpu) / seconds
        return json.dumps({"seconds": seconds, "cores": cores, **more})


def _count_writes(database: OpenDatabase) -> list[float]:
    """Note the time of each flush."""
    writes: list[float] = []
    write = database.write_unsynced

    async def counted(*arguments: Any, **options: Any) -> Any:
        writes.append(time.monotonic())
        return await write(*arguments, **options)

    database.write_unsynced = counted
    return writes


async def _stream(url: str, turns: int, rate: float, seconds: float) -> None:
    """Run turns that stream ``rate`` pieces a second. A piece is the time of its call."""
    begin, all_began = asyncio.Event(), asyncio.Event()
    begun = 0

    async def handler(turn: Turn) -> str:
        nonlocal begun
        begun += 1
        if begun == turns:
            all_began.set()
        await begin.wait()
        # The turns don't stream in step.
        await asyncio.sleep(hash(turn.session.id) % 997 / 997 / rate)
        end = time.monotonic() + seconds
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            if rate_is_set:
                turn.stream(f"{now:.6f};")
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        return "done"

    rate_is_set = rate > 0
    rate = rate or 20.0
    async with SessionsDB(url) as db:
        writes = _count_writes(open_database_of(db))
        worker = db.worker(handler, concurrency=turns, poll_interval=30)
        running = asyncio.create_task(worker.run())
        await all_began.wait()
        _say("ready")
        await _told()
        costs = _Costs()
        begin.set()
        await asyncio.sleep(seconds)
        _say(costs.report(writes=len(writes)))
        await worker.stop(grace=5.0)
        await running


async def _follow(url: str, turns: int, followers: int) -> None:
    """Follow each session several times, and tell how old the pieces are when they come."""
    delays: list[float] = []

    async def follow(db: SessionsDB, id: str) -> None:
        rest = ""
        async for event in db.broker.follow(id):
            if isinstance(event, DeltaEvent):
                now = time.monotonic()
                *whole, rest = (rest + event.text).split(";")
                delays.extend(now - float(one) for one in whole)

    async with SessionsDB(url) as db:
        following = [
            asyncio.create_task(follow(db, session_of(number)))
            for number in range(turns)
            for _ in range(followers)
        ]
        await asyncio.sleep(1.0)
        costs = _Costs()
        _say("ready")
        await _told()
        for task in following:
            task.cancel()
        await asyncio.wait(following)
        _say(costs.report(percentiles=statistics.quantiles(delays, n=100), pieces=len(delays)))


async def _idle(url: str, workers: int) -> None:
    async def handler(turn: Turn) -> None:
        raise AssertionError("there is no work")

    async with SessionsDB(url) as db:
        others = db.in_namespace("idle")
        running = [asyncio.create_task(others.worker(handler).run()) for _ in range(workers)]
        await asyncio.sleep(1.0)
        _say("ready")
        costs = _Costs()
        await _told()
        _say(costs.report())
        for task in running:
            task.cancel()
        await asyncio.wait(running)


def main() -> None:
    mode, url, *more = sys.argv[1:]
    if mode == "stream":
        asyncio.run(_stream(url, int(more[0]), float(more[1]), float(more[2])))
    elif mode == "follow":
        asyncio.run(_follow(url, int(more[0]), int(more[1])))
    elif mode == "idle":
        asyncio.run(_idle(url, int(more[0])))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
