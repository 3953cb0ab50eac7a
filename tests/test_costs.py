"""The costs that do not depend on the machine: statements, hops, bytes on disk.

What is read for each operation is in ``test_plans.py`` and ``test_plans_claims.py``, the rows that
a save writes in ``test_store.py``, and the updates that touch no index in
``reliability/test_resources.py``.
"""

from __future__ import annotations

import asyncio

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from tests.support.hops import ours, thread_hops
from tests.support.proxy import proxy_to

SESSIONS = 64
EACH = 4

MESSAGE = {"role": "user", "content": "x" * 225}

BYTES_A_MESSAGE = {"sqlite": 340, "postgresql": 390}
"""On disk with its index, for 225 characters: 318 on SQLite and 360 on PostgreSQL, measured."""


async def echo(turn: Turn) -> str:
    earlier = await turn.history()
    return f"{turn.text}, after {len(earlier)}"


async def fill(db: SessionsDB) -> None:
    """Send four messages to each of 64 sessions that have a transcript to read."""
    ids = [f"s{number}" for number in range(SESSIONS)]
    await asyncio.gather(*(db.store.append(id, [MESSAGE, MESSAGE]) for id in ids))
    for _ in range(EACH):
        await asyncio.gather(*(db.broker.send(id, "hello") for id in ids))


async def work(db: SessionsDB) -> None:
    assert await db.worker(echo, concurrency=SESSIONS).run_until_idle() == SESSIONS * EACH


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_turns_of_many_sessions_share_their_statements_on_postgresql(
    database: Database,
) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await fill(db)
        await work(db)  # the driver looks types up at their first use
        proxy.executed.clear()
        await fill(db)
        # 64 appends, 256 sends: at most three statements each time 64 callers come at once.
        assert len(ours(proxy.executed)) <= (1 + EACH) * 3
        proxy.executed.clear()
        await work(db)
        # 256 turns that claim, read and commit. Pages are read by 16, so the turns go in groups of
        # 16 as well: about 50 statements.
        assert len(ours(proxy.executed)) <= 70
        proxy.executed.clear()
        await asyncio.gather(*(db.store.load(f"s{number}") for number in range(SESSIONS)))
        # One load alone, and the others by 16.
        assert len(ours(proxy.executed)) <= 5


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_turns_of_many_sessions_share_their_hops_on_sqlite(db: SessionsDB) -> None:
    with thread_hops() as hops:
        await fill(db)
        assert len(hops) <= (1 + EACH) * 3
        hops.clear()
        await work(db)
        watching = [hop for hop in hops if "SqliteNotifier._look" in hop]
        assert len(hops) - len(watching) <= 50


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_save_over_a_save_of_others_is_three_statements_in_a_transaction(
    database: Database,
) -> None:
    transcript = [MESSAGE | {"content": str(number)} for number in range(1_000)]
    async with SessionsDB(database.url) as other:
        await other.store.save("long", transcript)
    transcript = [*transcript, MESSAGE, MESSAGE]
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        for _ in range(2):  # the driver looks types up at their first use
            await db.store.save("short", transcript[:10])
            await db.store.save("short", transcript[5:20])
        proxy.executed.clear()
        await db.store.save("long", transcript)
        begin, *statements, commit = ours(proxy.executed)
        assert begin.startswith("BEGIN; EXECUTE sessionsdb_stamp")
        assert len(statements) == 3, statements
        assert commit == "COMMIT;"


async def test_a_message_takes_little_more_room_than_its_text(database: Database) -> None:
    count = 10_000
    async with SessionsDB(database.url) as db:
        before = await size(database)
        for number in range(10):
            await db.store.append(f"s{number}", [MESSAGE] * (count // 10))
    taken = (await size(database) - before) / count
    assert taken <= BYTES_A_MESSAGE[database.kind]


async def size(database: Database) -> int:
    if database.kind == "postgresql":
        return int(await database.value("SELECT pg_total_relation_size('messages')"))
    await database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = await database.value("PRAGMA page_count")
    return int(pages * await database.value("PRAGMA page_size"))
