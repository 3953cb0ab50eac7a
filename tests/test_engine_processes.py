"""Processes that write to the same sessions at the same time."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sessionsdb import SessionsDB
from tests.support.databases import Database

SESSIONS = 20
ROUNDS = 30
WRITERS = ("one", "two", "three")


async def run_writer(url: str, name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.writer_process",
        url,
        name,
        str(ROUNDS),
        str(SESSIONS),
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def test_overlapping_batches_never_deadlock_and_lose_nothing(
    database: Database, db: SessionsDB
) -> None:
    for n in range(SESSIONS):
        await db.broker.register(f"s-{n}", channel="cli", peer="ada")
    await asyncio.gather(*(run_writer(database.url, name) for name in WRITERS))

    expected = sorted(f"{name} {round}" for name in WRITERS for round in range(ROUNDS))
    for n in range(SESSIONS):
        transcript = await db.store.load(f"s-{n}")
        assert transcript is not None
        texts = [message["content"] for message in transcript]
        assert sorted(texts) == expected
        queued = [
            content
            for position, content in await database.query(
                f"SELECT position, content FROM inbox WHERE session_id = 's-{n}' ORDER BY position"
            )
        ]
        assert sorted(queued) == expected
        for name in WRITERS:  # each writer's own order is kept
            ours = [f"{name} {round}" for round in range(ROUNDS)]
            assert [t for t in texts if t.startswith(name)] == ours
            assert [t for t in queued if t.startswith(name)] == ours
    gaps = await database.value(
        "SELECT count(*) FROM mailboxes b WHERE b.tail <> b.pending OR b.tail <>"
        " (SELECT max(i.position) FROM inbox i WHERE i.session_id = b.session_id)"
    )
    assert gaps == 0
    if database.kind == "postgresql":
        assert (
            await database.value(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            )
            == 0
        )


async def test_two_handles_on_one_database_see_each_others_writes_at_once(
    database: Database, db: SessionsDB
) -> None:
    async with SessionsDB(database.url) as other:
        for n in range(20):
            writer, reader = (db, other) if n % 2 else (other, db)
            await writer.store.append("chat", [{"role": "user", "content": str(n)}])
            assert await reader.store.version("chat") == n + 1
            assert (await reader.broker.history("chat"))[-1].content == str(n)
