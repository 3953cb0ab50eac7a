"""A worker in a process of its own whose handler streams its reply word by word."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess

from sessionsdb import Backoff, SessionsDB, Turn
from tests.support.worker_process import kill

WORDS = 40

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


async def reply(turn: Turn) -> str:
    """Stream a reply that no other run has: a follower could not tell a mix of two otherwise."""
    text = ""
    for number in range(WORDS):
        word = f"{turn.text}.{turn.attempt}.{os.getpid()}.{number} "
        text += word
        turn.stream(word)
        if number % 10 == 0:
            turn.emit("progress", number)
        await asyncio.sleep(random.uniform(0.0, 0.01))
    return text


async def work(url: str, lease: float) -> None:
    async with SessionsDB(url) as db:
        worker = db.worker(
            reply,
            lease_seconds=lease,
            poll_interval=0.1,
            max_attempts=10_000,
            retry=Backoff(first=0.01, most=0.05),
        )
        await worker.run()


def main(url: str, lease: float) -> None:
    asyncio.run(work(url, lease))


@contextmanager
def streaming_worker(url: str, *, lease: float = 0.6) -> Iterator[ForkServerProcess]:
    """A worker process, killed at the end of the block."""
    process = _processes.Process(target=main, args=(url, lease))
    process.start()
    try:
        yield process
    finally:
        kill(process)
        process.close()
