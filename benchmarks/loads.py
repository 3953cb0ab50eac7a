"""python -m benchmarks.loads: reads of remembered transcripts, beside reads that remember nothing.

Both sides use one handle of one database, in turns. Each caller has a transcript of its own. It
loads all of it, or reads a page of history, with two messages that were appended since its last
read. A figure is the median of the rounds, and the ratio is the median of the ratios. The table is
Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sized
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from benchmarks.messages import transcript
from devtools.databases import Database, PostgresServer, SqliteFiles
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of

LOADS = (20, 100, 400, 1_000)
PAGES = (20, 50, 200)
STORED = 400
"""The messages of a transcript whose pages are read."""

CALLERS = (1, 64)
TURNS = 10
"""The reads of each caller before its transcript begins again with its first length."""


@contextmanager
def without_remembering(db: SessionsDB) -> Iterator[None]:
    database = open_database_of(db)
    with (
        mock.patch.object(database.transcript_loads.remembered, "min_messages", sys.maxsize),
        mock.patch.object(database.history_pages.remembered, "min_messages", sys.maxsize),
    ):
        yield


class Reads:
    """Callers that read the transcripts of one length, or pages of them."""

    def __init__(self, db: SessionsDB, what: str, length: int, callers: int) -> None:
        self._db = db
        self._what = what
        self._length = length
        self._ids = [f"{what}-{length}-{number}" for number in range(callers)]
        self._first = transcript(length if what == "load" else STORED)
        self._two = transcript(2)

    async def microseconds(self) -> float:
        """Return the wall time of a read, over ``TURNS`` of each caller. Appends do not count."""
        database = open_database_of(self._db)
        database.transcript_loads.clear()
        database.history_pages.clear()
        for id in self._ids:
            await self._db.store.delete(id)
            await self._db.store.append(id, self._first)
        for _ in range(2):
            await self._read()
        spent = 0.0
        for _ in range(TURNS):
            await asyncio.gather(*(self._db.store.append(id, self._two) for id in self._ids))
            began = time.perf_counter()
            await self._read()
            spent += time.perf_counter() - began
        return spent / TURNS / len(self._ids) * 1e6

    async def _read(self) -> None:
        await asyncio.gather(*(self._read_one(id) for id in self._ids))

    async def _read_one(self, id: str) -> None:
        """Read messages and let go of them, as an agent does before the next turn."""
        found: Sized | None
        if self._what == "load":
            found = await self._db.store.load(id)
        else:
            found = await self._db.broker.history(id, self._length)
        assert found is not None
        assert len(found) >= self._length


async def _measure(database: Database, rounds: int) -> None:
    async with SessionsDB(database.url) as db:
        for what, length in [*(("load", n) for n in LOADS), *(("history", n) for n in PAGES)]:
            for callers in CALLERS:
                reads = Reads(db, what, length, callers)
                await reads.microseconds()
                if database.kind == "postgresql":
                    await database.query("VACUUM ANALYZE")
                pairs = []
                for _ in range(rounds):
                    remembered = await reads.microseconds()
                    with without_remembering(db):
                        pairs.append((await reads.microseconds(), remembered))
                whole, remembered = (statistics.median(side) for side in zip(*pairs, strict=True))
                ratio = statistics.median(one / other for one, other in pairs)
                print(
                    f"| {what} | {database.kind} | {length:,} | {callers} | {whole:.0f}"
                    f" | {remembered:.0f} | {ratio:.2f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loads", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print("| what | database | messages | callers | read whole, µs | remembered, µs | ratio |")
    print("|---|---|--:|--:|--:|--:|--:|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(SqliteFiles(folder).new_database())
        asyncio.run(_measure(database, rounds))
    with PostgresServer.started(durable=True) as server, server.new_database() as database:
        asyncio.run(_measure(database, rounds))


if __name__ == "__main__":
    main()
