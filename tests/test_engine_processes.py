"""Processes and handles that write to the same sessions at the same time."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from sessionsdb import SessionsDB
from tests.support.databases import Database
from tests.support.waiting import until

SESSIONS = 150
ROUNDS = 12
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


async def test_overlapping_batches_do_not_deadlock_or_lose_requests(
    database: Database, db: SessionsDB
) -> None:
    await asyncio.gather(
        *(db.broker.register(f"s-{n}", channel="cli", peer="ada") for n in range(SESSIONS))
    )
    await asyncio.gather(*(run_writer(database.url, name) for name in WRITERS))

    expected = sorted(f"{name} {round}" for name in WRITERS for round in range(ROUNDS))
    inbox: dict[str, list[str]] = {}
    for id, content in await database.query(
        "SELECT session_id, content FROM inbox ORDER BY session_id, position"
    ):
        inbox.setdefault(id, []).append(content)
    for n in range(SESSIONS):
        transcript = await db.store.load(f"s-{n}")
        assert transcript is not None
        texts = [message["content"] for message in transcript]
        assert sorted(texts) == expected
        queued = inbox[f"s-{n}"]
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
        assert await deadlocks(database) == 0


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize(("table", "column"), [("mailboxes", "session_id"), ("sessions", "id")])
async def test_batches_take_their_locks_in_one_order(
    database: Database, db: SessionsDB, table: str, column: str
) -> None:
    """One row is locked while two batches of two handles take their locks: both wait half way."""
    ids = [f"s-{n}" for n in range(40)]
    await asyncio.gather(*(db.broker.register(id, channel="cli", peer="ada") for id in ids))
    other = await database.connect_to_postgres()
    async with SessionsDB(database.url) as second:
        for _ in range(3):
            transaction = other.transaction()
            await transaction.start()
            await other.execute(f"SELECT 1 FROM {table} WHERE {column} = 's-25' FOR UPDATE")
            hello = [{"role": "user", "content": "hello"}]
            writes = [
                asyncio.create_task(write)
                for handle, order in ((db, ids), (second, ids[::-1]))
                for id in order
                for write in (handle.broker.send(id, "hello"), handle.store.append(id, hello))
            ]
            await until(lambda: two_wait_for_locks(database))
            await transaction.rollback()
            await asyncio.wait_for(asyncio.gather(*writes), 30)
    await other.close()
    assert await deadlocks(database) == 0


async def two_wait_for_locks(database: Database) -> bool:
    waiting = await database.value(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(waiting >= 2)


async def deadlocks(database: Database) -> int:
    return int(
        await database.value(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
    )


async def test_two_handles_see_each_others_writes_at_once(
    database: Database, db: SessionsDB
) -> None:
    async with SessionsDB(database.url) as other:
        for n in range(20):
            writer, reader = (db, other) if n % 2 else (other, db)
            await writer.store.append("chat", [{"role": "user", "content": str(n)}])
            assert await reader.store.version("chat") == n + 1
            assert (await reader.broker.history("chat"))[-1].content == str(n)
