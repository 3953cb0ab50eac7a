"""A process of its own for the groups that need one: a worker, or the load beside a measurement.

python -m benchmarks.worker_process answer URL         answers, and prints the time of each ping
python -m benchmarks.worker_process drain URL SLOTS    works off the backlog after a line on stdin
python -m benchmarks.worker_process append URL         appends with 64 callers without a pause
python -m benchmarks.worker_process load URL RATE      sends RATE messages a second (0: the maximum)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.memory import peak_mb
from benchmarks.messages import text, transcript
from sessionsdb import SessionsDB, Turn

PING = "ping"

LOADED = [f"load-{number}" for number in range(64)]
"""The sessions that get the load."""

CALLERS = 32
"""The number of concurrent senders when the load has no rate."""

SUSTAINED_SECONDS = 2.0


@asynccontextmanager
async def started(
    *arguments: object, module: str = "benchmarks.worker_process"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a process, and wait until it is ready. Killed at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await line(process) == "ready"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    """The next line that the process prints."""
    assert process.stdout is not None
    printed = await process.stdout.readline()
    if not printed:
        raise RuntimeError("the process ended before it was done")
    return printed.decode().strip()


def _say(what: object) -> None:
    print(what, flush=True)


async def _told() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def _answer(url: str) -> None:
    async def handler(turn: Turn) -> str:
        if turn.text == PING:
            _say(time.monotonic())
        return turn.text

    async with SessionsDB(url) as db:
        # So long between polls that only a hint can have woken it.
        running = asyncio.create_task(db.worker(handler, poll_interval=30).run())
        _say("ready")
        await running


async def _drain(url: str, slots: int) -> None:
    async def handler(turn: Turn) -> str:
        return text(2)

    async with SessionsDB(url) as db:
        worker = db.worker(handler, concurrency=slots)
        _say("ready")
        await _told()
        turns = await worker.run_until_idle()
        _say(json.dumps({"turns": turns, "peak_mb": peak_mb()}))


async def _append(url: str) -> None:
    async def caller(session: str) -> None:
        while True:
            await db.store.append(session, transcript(1))

    async with SessionsDB(url) as db, asyncio.TaskGroup() as callers:
        for session in LOADED:
            callers.create_task(caller(session))
        _say("ready")


async def _load(url: str, rate: float) -> None:
    async with SessionsDB(url) as db:
        for id in LOADED:
            await db.broker.register(id, channel="bench", peer="load", exist_ok=True)
        _say("ready")
        if rate == 0:
            _say(await _sustained(db))
            return
        sending: set[asyncio.Task[Any]] = set()
        began, sent = time.monotonic(), 0
        while True:
            while sent < (time.monotonic() - began) * rate:
                task = asyncio.create_task(db.broker.send(LOADED[sent % len(LOADED)], text(sent)))
                sending.add(task)
                task.add_done_callback(sending.discard)
                sent += 1
            await asyncio.sleep(0.002)


async def _sustained(db: SessionsDB) -> float:
    """Messages a second that are sent and answered by ``CALLERS`` callers without pauses."""
    answered = 0
    began = time.monotonic()

    async def caller(number: int) -> None:
        nonlocal answered
        while time.monotonic() - began < SUSTAINED_SECONDS:
            receipt = await db.broker.send(LOADED[number], text(number))
            assert (await db.broker.wait(receipt, timeout=30)).status == "done"
            answered += 1

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return answered / (time.monotonic() - began)


def main() -> None:
    mode, url, *more = sys.argv[1:]
    if mode == "answer":
        asyncio.run(_answer(url))
    elif mode == "drain":
        asyncio.run(_drain(url, int(more[0])))
    elif mode == "append":
        asyncio.run(_append(url))
    elif mode == "load":
        asyncio.run(_load(url, float(more[0])))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
