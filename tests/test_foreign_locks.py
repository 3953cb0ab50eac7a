"""Locks that other roles can hold on PostgreSQL stop neither waits nor migrations for ever."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from devtools.databases import Database
from sessionsdb import Edit, SessionsDB, StorageError
from sessionsdb.engine import fair_turns
from sessionsdb.engine.postgresql import migration_lock
from sessionsdb.runtime import outcome_waiter
from tests.support.pools import checked_out
from tests.support.waiting import until

# Every lock that a role without any right can take on the numbers that were used once.
ADVISORY = (
    "SELECT pg_advisory_lock(7305811234561)",
    "SELECT pg_advisory_lock(730581, hashtext('default'))",
)


@pytest.fixture
def kind() -> str:
    return "postgresql"


async def test_advisory_locks_of_others_stop_neither_a_wait_nor_a_migration(
    empty_database: Database,
) -> None:
    stranger = create_async_engine(empty_database.url.replace("postgresql:", "postgresql+asyncpg:"))
    async with stranger.connect() as connection:
        for lock in ADVISORY:
            await connection.execute(text(lock))
        async with asyncio.timeout(60), SessionsDB(empty_database.url, migrate=True) as db:
            for id in ("a", "b"):
                await db.broker.register(id, channel="c", peer="p")
            receipt = await db.broker.send("b", "hi", sender="a")
            begun = time.monotonic()
            outcome = await db.broker.wait(receipt, 0.2, waiter="a")
            assert outcome.status == "pending"
            assert time.monotonic() - begun < 5
    await stranger.dispose()


async def test_a_timeout_belongs_to_the_wait_whoever_holds_the_waits(
    database: Database, db: SessionsDB
) -> None:
    ids = [f"s{n}" for n in range(30)]
    for id in (*ids, "target"):
        await db.broker.register(id, channel="c", peer="p")
    receipt = await db.broker.send("target", "hi")
    async with db.engine.connect() as connection, connection.begin():
        await connection.execute(text("LOCK TABLE waits IN ACCESS EXCLUSIVE MODE"))
        begun = time.monotonic()
        outcomes = await asyncio.gather(
            *(db.broker.wait(receipt, 0.5, waiter=id) for id in ids),
            *(db.broker.wait(receipt, 0.5) for _ in range(5)),
        )
        assert {outcome.status for outcome in outcomes} == {"pending"}
        assert time.monotonic() - begun < 10
        await db.broker.send("target", "the process goes on")
    assert (await db.broker.wait(receipt, 0.1, waiter="s0")).status == "pending"


@pytest.mark.parametrize("waiter", [None, "a"])
async def test_a_wait_ends_soon_after_its_timeout_whoever_holds_the_inbox(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch, waiter: str | None
) -> None:
    monkeypatch.setattr(outcome_waiter, "LAST_READ_SECONDS", 0.1)
    for id in ("a", "b"):
        await db.broker.register(id, channel="c", peer="p")
    receipt = await db.broker.send("b", "hi")
    async with db.engine.connect() as connection, connection.begin():
        await connection.execute(text("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE"))
        async with asyncio.timeout(20):
            with pytest.raises(StorageError, match="not answered"):
                await db.broker.wait(receipt, 0.1, waiter=waiter)
    monkeypatch.undo()
    assert (await db.broker.wait(receipt, 0)).status == "pending"


async def test_calls_behind_a_lock_leave_connections_for_sends_and_heartbeats(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_turns, "STALL_SECONDS", 0.0)
    for id in ("locked", "free"):
        await db.broker.register(id, channel="c", peer="p")
    await db.store.append("locked", [{"role": "user", "content": "hello"}])
    await db.index_search()
    async with db.engine.connect() as connection, connection.begin():
        await connection.execute(text("LOCK TABLE search_documents IN ACCESS EXCLUSIVE MODE"))
        await connection.execute(text("SELECT 1 FROM sessions WHERE id = 'locked' FOR UPDATE"))
        behind = [
            *(asyncio.create_task(db.broker.search("hello")) for _ in range(30)),
            *(asyncio.create_task(db.store.edit("locked", Edit(metadata={}))) for _ in range(30)),
        ]
        await until(lambda: checked_out(db.engine) > 16)
        async with asyncio.timeout(10):
            await db.broker.send("free", "hi")
    await asyncio.gather(*behind)


async def test_a_migration_gives_up_a_lock_that_another_transaction_holds(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = text("SELECT pg_catalog.set_config('lock_timeout', '100ms', true)")
    async with SessionsDB(empty_database.url, migrate=True) as db:
        monkeypatch.setattr(migration_lock, "_SET_TIMEOUT", short)
        async with db.engine.connect() as connection, connection.begin():
            await connection.execute(text("UPDATE sessionsdb_version SET version_num = '0001'"))
            await connection.commit()
        async with db.engine.connect() as connection, connection.begin():
            await connection.execute(text("UPDATE sessionsdb_version SET version_num = '0001'"))
            with pytest.raises(StorageError, match="pg_blocking_pids"):
                async with SessionsDB(empty_database.url, migrate=True):
                    pass
