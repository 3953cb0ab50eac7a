"""A process that uses a SQLite file in every way until it is killed, and keeps a journal.

A line is written before each call and another when it has returned, with one ``write`` each:
``{"op": …, "session": …, "texts": […], "did": "intent"}`` and then the same with ``"ack"`` and the
position.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import random
import sqlite3
from collections.abc import Awaitable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from sessionsdb import Backoff, SessionsDB, Turn

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.support.worker_process", __name__])

SHARED = 4
"""Sessions that all processes write to."""


class Writer:
    def __init__(self, db: SessionsDB, name: str, journal: Path) -> None:
        self._db = db
        self._name = name
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND)
        self._chance = random.Random(name)
        self._numbers = itertools.count()

    async def write(self, lane: int) -> None:
        """Make one call after another. Each lane saves to its own session."""
        own = f"save-{self._name}-{lane}"
        await self._db.store.save(own, [])
        while True:
            text = f"{self._name}.{next(self._numbers)}"
            shared = self._chance.randrange(SHARED)
            texts = [f"{text}/{n}" for n in range(3)]
            kind = self._chance.choice(("send", "send", "append", "save"))
            if kind == "send":
                call: Awaitable[Any] = self._db.broker.send(f"inbox-{shared}", text)
                await self._recorded("send", f"inbox-{shared}", [text], call)
            elif kind == "append":
                session = f"append-{shared}"
                await self._recorded(
                    "append", session, texts, self._db.store.append(session, of(texts))
                )
            else:
                texts *= self._chance.randint(1, 20)
                await self._recorded("save", own, texts, self._db.store.save(own, of(texts)))

    async def _recorded(
        self, op: str, session: str, texts: list[str], call: Awaitable[Any]
    ) -> None:
        line = {"op": op, "session": session, "texts": texts}
        self._record({**line, "did": "intent"})
        answer = await call
        position = getattr(answer, "position", None)
        self._record({**line, "did": "ack", "position": position})

    def _record(self, line: dict[str, Any]) -> None:
        os.write(self._journal, json.dumps(line).encode() + b"\n")


def of(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


async def echo(turn: Turn) -> str:
    return f"echo: {turn.text}"


async def live(path: Path, name: str, journal: Path) -> None:
    async with SessionsDB(f"sqlite:///{path}") as db, asyncio.TaskGroup() as tasks:
        writer = Writer(db, name, journal)
        for lane in range(3):
            tasks.create_task(writer.write(lane))
        worker = db.worker(
            echo, lease_seconds=0.5, poll_interval=0.1, max_attempts=1_000, retry=Backoff(first=0.1)
        )
        tasks.create_task(worker.run())
        while True:  # checkpoint the WAL again and again
            await asyncio.sleep(random.uniform(0, 0.02))
            await asyncio.to_thread(checkpoint, path)


def checkpoint(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()


def main(path: Path, name: str, journal: Path) -> None:
    asyncio.run(live(path, name, journal))


@contextmanager
def doomed_process(path: Path, name: str, journal: Path) -> Iterator[ForkServerProcess]:
    """A process that is killed at the end of the block."""
    process = _processes.Process(target=main, args=(path, name, journal))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()
