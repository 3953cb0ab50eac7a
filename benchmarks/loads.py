"""python -m benchmarks.loads: loads of remembered transcripts, beside loads that read all of it.

Both sides use one handle of one database, in turns. Each caller loads a transcript of its own, with
two messages that were appended since its last load. The other side remembers nothing. A figure is
the median of the rounds, and the ratio is the median of the ratios. The table is Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from benchmarks.messages import transcript
from devtools.databases import Database, PostgresServer, SqliteFiles
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.runtime import transcript_loads

LENGTHS = (20, 100, 400, 1_000)
CALLERS = (1, 64)
TURNS = 10
"""The loads of each caller before its transcript begins again with its first length."""


@contextmanager
def without_remembering() -> Iterator[None]:
    with mock.patch.object(transcript_loads, "REMEMBERED_FROM", sys.maxsize):
        yield


class Loads:
    """Callers that load transcripts of one length."""

    def __init__(self, db: SessionsDB, length: int, callers: int) -> None:
        self._db = db
        self._length = length
        self._ids = [f"{length}-{number}" for number in range(callers)]
        self._two = transcript(2)

    async def microseconds(self) -> float:
        """Return the wall time of a load, over ``TURNS`` of each caller. Appends do not count."""
        open_database_of(self._db).transcript_loads.clear()
        for id in self._ids:
            await self._db.store.delete(id)
            await self._db.store.append(id, transcript(self._length))
        for _ in range(2):
            await self._load()
        spent = 0.0
        for _ in range(TURNS):
            await asyncio.gather(*(self._db.store.append(id, self._two) for id in self._ids))
            began = time.perf_counter()
            await self._load()
            spent += time.perf_counter() - began
        return spent / TURNS / len(self._ids) * 1e6

    async def _load(self) -> None:
        await asyncio.gather(*(self._load_one(id) for id in self._ids))

    async def _load_one(self, id: str) -> None:
        """Load a transcript and let go of it, as an agent does before the next turn."""
        loaded = await self._db.store.load(id)
        assert loaded is not None
        assert len(loaded) >= self._length


async def _measure(database: Database, rounds: int) -> None:
    async with SessionsDB(database.url) as db:
        for length in LENGTHS:
            for callers in CALLERS:
                loads = Loads(db, length, callers)
                await loads.microseconds()
                if database.kind == "postgresql":
                    await database.query("VACUUM ANALYZE")
                pairs = []
                for _ in range(rounds):
                    remembered = await loads.microseconds()
                    with without_remembering():
                        pairs.append((await loads.microseconds(), remembered))
                whole, remembered = (statistics.median(side) for side in zip(*pairs, strict=True))
                ratio = statistics.median(one / other for one, other in pairs)
                print(
                    f"| {database.kind} | {length:,} | {callers} | {whole:.0f} | {remembered:.0f}"
                    f" | {ratio:.2f} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loads", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print("| database | messages | callers | read whole, µs | remembered, µs | ratio |")
    print("|---|--:|--:|--:|--:|--:|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(SqliteFiles(folder).new_database())
        asyncio.run(_measure(database, rounds))
    with PostgresServer.started(durable=True) as server, server.new_database() as database:
        asyncio.run(_measure(database, rounds))


if __name__ == "__main__":
    main()
