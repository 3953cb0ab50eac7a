"""A worker in a process of its own, which keeps a journal of what its handler did.

The handler writes a line when it begins and when it ends a turn, with one `write` each, so that
the lines of several processes do not mix. What a message says decides what the handler does:

- ``hang``: never ends by itself
- ``fail``: raises
- ``spin N``: blocks the event loop for N seconds
- ``tell ID``: stages a message to another session
- anything else: is echoed
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sessionsdb import Backoff, SessionsDB, Turn


class Journal:
    """A file that several processes write to, and the test reads."""

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


async def handle(journal: Journal, turn: Turn) -> str:
    journal.write("begin", turn)
    try:
        verb, _, rest = turn.messages[0].content.partition(" ")
        if verb == "hang":
            await asyncio.Event().wait()
        if verb == "fail":
            raise RuntimeError("told to fail")
        if verb == "spin":
            time.sleep(float(rest))  # noqa: ASYNC251 - a handler that does it wrong
        if verb == "tell":
            turn.send(rest, f"from {turn.session.id}")
        return f"echo: {turn.text}"
    finally:
        journal.write("end", turn)


async def main(arguments: argparse.Namespace) -> None:
    journal = Journal(arguments.journal)
    async with SessionsDB(arguments.url) as db:
        worker = db.worker(
            lambda turn: handle(journal, turn),
            concurrency=arguments.concurrency,
            lease_seconds=arguments.lease,
            max_attempts=arguments.max_attempts,
            poll_interval=0.2,
            retry=Backoff(first=0.05, most=0.2),
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(
            signal.SIGTERM, lambda: asyncio.ensure_future(worker.stop(arguments.grace))
        )
        await worker.run()


@contextmanager
def worker_process(
    url: str, journal: Journal, *, lease: float = 30.0, concurrency: int = 8, max_attempts: int = 5
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that runs until it is told otherwise; killed at the end."""
    command = [sys.executable, "-m", __name__, url, str(journal.path)]
    command += ["--lease", str(lease), "--concurrency", str(concurrency)]
    command += ["--max-attempts", str(max_attempts)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("journal", type=Path)
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-attempts", type=int, default=5)
    parser.add_argument("--grace", type=float, default=5.0)
    asyncio.run(main(parser.parse_args()))
