"""The search group: a search in 10,000 sessions, the rate of the index, and work beside an indexer.

Each session has 10 messages of 40 words. A rare word stands in one of them, a common one in all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from functools import partial

from benchmarks.bench import Bench, Sample, Sampler, calls
from benchmarks.results import OURS
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.runtime.search_indexer import SearchIndexer

SEARCH, INDEX, APPEND, SEND = "search", "index", "append", "send"
WITHOUT = "without the indexer"

BESIDE_SECONDS = 2.0
"""The shortest sample beside an indexer. It pauses for seconds between two batches, so a sample of
0.3 s has its start and its first batch, and hardly a pause."""

SESSIONS, EACH, WORDS = 10_000, 10, 40
VOCABULARY = [f"word{number}" for number in range(20_000)]


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure(bench, database))


async def _measure(bench: Bench, database: str) -> None:
    sessions = 50 if bench.tiny else SESSIONS
    with bench.new_database(database) as made:
        async with SessionsDB(made.url) as db:
            await _fill(db, sessions)
            began = time.perf_counter()
            indexed = await db.index_search()
            bench.record(
                INDEX,
                database=database,
                side=OURS,
                unit="/s",
                values=[indexed / (time.perf_counter() - began)],
                at={"messages": indexed},
            )
            for kind, query in (("rare", f"needle{sessions // 2}"), ("common", "common")):
                bench.record(
                    SEARCH,
                    database=database,
                    side=OURS,
                    unit="ms",
                    values=[await _search(db, query) for _ in range(bench.rounds)],
                    at={"word": kind},
                    better="less",
                )
            await _beside(bench, database, db, sessions)


async def _fill(db: SessionsDB, sessions: int) -> None:
    chance = random.Random(1)
    for start in range(0, sessions, 500):
        await asyncio.gather(
            *(
                db.store.append(f"s{number}", _transcript(chance, number))
                for number in range(start, min(start + 500, sessions))
            )
        )


def _transcript(chance: random.Random, number: int) -> list[dict[str, str]]:
    texts = [" ".join([*chance.choices(VOCABULARY, k=WORDS), "common"]) for _ in range(EACH)]
    texts[3] += f" needle{number}"
    return [
        {"role": "assistant" if place % 2 else "user", "content": text}
        for place, text in enumerate(texts)
    ]


async def _search(db: SessionsDB, query: str) -> float:
    began = time.perf_counter()
    assert await db.broker.search(query)
    return (time.perf_counter() - began) * 1_000


async def _beside(bench: Bench, database: str, db: SessionsDB, sessions: int) -> None:
    """Measure writes beside an indexer in the same process that has to index all of them."""
    message = _transcript(random.Random(2), 0)[:1]

    async def append(caller: int) -> object:
        return await db.store.append(f"s{caller % sessions}", message)

    async def send(caller: int) -> object:
        number = next(numbers)
        return await db.broker.send(f"s{number % sessions}", "hello common words")

    numbers = iter(range(10**9))
    seconds = bench.seconds if bench.quick else max(bench.seconds, BESIDE_SECONDS)
    for what, call in ((APPEND, append), (SEND, send)):
        sampler = calls(64, call, seconds, sessions * 50)
        await bench.compare(
            what,
            database=database,
            at={"callers": 64},
            samplers={OURS: partial(_with_indexer, db, sampler), WITHOUT: sampler},
            rounds=bench.rounds,
        )


async def _with_indexer(db: SessionsDB, sampler: Sampler) -> Sample:
    indexer = SearchIndexer(open_database_of(db), [db.namespace], is_busy=lambda: True)
    running = asyncio.create_task(indexer.run_forever())
    try:
        return await sampler()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
