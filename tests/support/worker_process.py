"""A worker in a process of its own, which keeps a journal of its turns.

The handler writes a line when it begins and when it ends a turn, with one `write` each, so that
the lines of several processes do not mix. The text of a message tells the handler:

- ``hang``: never ends by itself
- ``spin SECONDS``: blocks the event loop that long
- ``tell ID``: stages a message to another session, then blocks the event loop for a moment
- any other text: is echoed

Processes are forked from a server that has all modules imported. A worker starts in some 20 ms,
which makes it cheap to kill a hundred of them.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sessionsdb import Backoff, SessionsDB, Turn

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


class Journal:
    """A file that several processes write and the test reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, event: str, turn: Turn) -> None:
        line = json.dumps(
            {
                "event": event,
                "pid": os.getpid(),
                "session": turn.session.id,
                "messages": [message.content for message in turn.messages],
                "attempt": turn.attempt,
                "at": time.monotonic(),
            }
        )
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def read(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def count(self) -> int:
        return self.path.read_bytes().count(b"\n")


async def handle(journal: Journal, turn: Turn) -> str:
    journal.write("begin", turn)
    try:
        verb, _, rest = turn.messages[0].content.partition(" ")
        if verb == "hang":
            await asyncio.Event().wait()
        if verb == "tell":
            turn.send(rest, f"from {turn.session.id}")
        if verb in ("spin", "tell"):
            # A wrong handler that blocks the loop: a process frozen now is in the middle of a turn.
            time.sleep(float(rest) if verb == "spin" else 0.5)  # noqa: ASYNC251
        return f"echo: {turn.text}"
    finally:
        journal.write("end", turn)


async def work(url: str, journal: Journal, lease: float, concurrency: int, attempts: int) -> None:
    async with SessionsDB(url) as db:
        worker = db.worker(
            lambda turn: handle(journal, turn),
            concurrency=concurrency,
            lease_seconds=lease,
            max_attempts=attempts,
            poll_interval=0.2,
            retry=Backoff(first=0.05, most=0.2),
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(worker.stop(grace=0.5)))
        await worker.run()


def main(url: str, path: Path, lease: float, concurrency: int, attempts: int) -> None:
    asyncio.run(work(url, Journal(path), lease, concurrency, attempts))


@contextmanager
def worker_process(
    url: str, journal: Journal, *, lease: float = 30.0, concurrency: int = 8, max_attempts: int = 5
) -> Iterator[ForkServerProcess]:
    """A worker process, killed at the end of the block."""
    process = _processes.Process(
        target=main, args=(url, journal.path, lease, concurrency, max_attempts)
    )
    process.start()
    try:
        yield process
    finally:
        kill(process)
        process.close()


def kill(process: ForkServerProcess) -> None:
    """SIGKILL, and wait until it is gone."""
    process.kill()
    process.join()
