"""Cancellation at any await leaves a call either completely done or completely undone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Limits, ListOptions, Receipt, SessionsDB, SpawnRequest
from sessionsdb.engine.postgresql.connection_cache import CACHED_CONNECTIONS
from tests.support.cancellation import cancel_everywhere
from tests.support.pools import checked_out
from tests.support.waiting import until

Call = Callable[[SessionsDB, int], Coroutine[Any, Any, Any]]

TWO = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]

# Each writes more than one row. `n` is different for each call.
WRITES: dict[str, Call] = {
    "save": lambda db, n: db.store.save("chat", [{"role": "user", "content": str(n)}, *TWO]),
    "save new": lambda db, n: db.store.save(f"new-{n}", TWO),
    "append": lambda db, n: db.store.append("chat", TWO),
    "append new": lambda db, n: db.store.append(f"new-{n}", TWO),
    "append at version": lambda db, n: _append_at_version(db),
    "send": lambda db, n: db.broker.send("chat", "hello"),
    "send with key": lambda db, n: db.broker.send("chat", "hello", idempotency_key=str(n)),
    "spawn": lambda db, n: db.broker.spawn("chat", SpawnRequest(prompt="go")),
    "spawn and wait": lambda db, n: db.broker.spawn(
        "chat", SpawnRequest(prompt="go", wait_for_first_reply=True, wait_timeout_secs=0.01)
    ),
    "register": lambda db, n: db.broker.register(f"new-{n}", channel="c", peer="p", parent="chat"),
    "update": lambda db, n: db.broker.update("chat", model=str(n), system=str(n)),
    "end": lambda db, n: db.broker.end(f"old-{n}", subtree=True),
    "delete": lambda db, n: db.store.delete(f"old-{n}", children="cascade"),
}

READS: dict[str, Call] = {
    "load": lambda db, n: db.store.load("chat"),
    "version": lambda db, n: db.store.version("chat"),
    "store.list": lambda db, n: db.store.list(),
    "list_paginated": lambda db, n: db.store.list_paginated(ListOptions(limit=3)),
    "get": lambda db, n: db.broker.get("chat"),
    "list": lambda db, n: db.broker.list(root="chat", include_ended=True),
    "history": lambda db, n: db.broker.history("chat"),
    "outcome": lambda db, n: db.broker.outcome(Receipt(session_id="chat", position=1)),
    "wait": lambda db, n: db.broker.wait(Receipt(session_id="chat", position=1), timeout=0.01),
    "dead_letters": lambda db, n: db.broker.dead_letters(),
}

# Queries that count traces of incomplete writes.
INCOMPLETE_WRITES = (
    "SELECT count(*) FROM sessions s WHERE s.message_count <>"
    " (SELECT count(*) FROM messages m WHERE m.session_id = s.id)",
    "SELECT count(*) FROM sessions s WHERE s.channel = 'store' AND s.message_count = 0",
    "SELECT count(*) FROM sessions s WHERE NOT EXISTS"
    " (SELECT 1 FROM mailboxes b WHERE b.session_id = s.id)",
    "SELECT count(*) FROM mailboxes b WHERE b.pending <> (SELECT count(*) FROM inbox i"
    " WHERE i.session_id = b.session_id AND i.status IN ('pending', 'running'))",
    "SELECT count(*) FROM mailboxes b WHERE b.tail <>"
    " (SELECT count(*) FROM inbox i WHERE i.session_id = b.session_id)",
    "SELECT count(*) FROM sessions s WHERE s.channel = 'spawned' AND NOT EXISTS"
    " (SELECT 1 FROM inbox i WHERE i.session_id = s.id)",
    "SELECT count(*) FROM sessions s JOIN mailboxes b ON b.session_id = s.id"
    " WHERE (s.ended_at IS NOT NULL) <> b.closed",
    "SELECT count(*) FROM sessions s JOIN sessions c ON c.parent_id = s.id"
    " WHERE s.id LIKE 'old-%' AND (s.ended_at IS NULL) <> (c.ended_at IS NULL)",
    "SELECT count(*) FROM sessions s WHERE s.model <> s.system",
)

SESSIONS_TO_REMOVE = 60


async def _append_at_version(db: SessionsDB) -> int:
    version = await db.store.version("chat")
    return await db.store.append("chat", TWO, expected_version=version)


async def prepare(database: Database, verb: str) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        await db.store.append("chat", TWO)
        await db.broker.send("chat", "hello")
        if verb in ("end", "delete"):
            await asyncio.gather(
                *(_register_with_child(db, f"old-{n}") for n in range(SESSIONS_TO_REMOVE))
            )


async def _register_with_child(db: SessionsDB, id: str) -> None:
    await db.broker.register(id, channel="cli", peer="ada")
    await db.broker.register(f"{id}-child", channel="cli", peer="ada", parent=id)
    await db.broker.send(id, "hello")


async def assert_no_incomplete_write(database: Database) -> None:
    [counts] = await database.query(
        f"SELECT {', '.join(f'({query})' for query in INCOMPLETE_WRITES)}"
    )
    assert not any(counts), counts


async def assert_no_open_transaction(database: Database) -> None:
    """No connection holds a transaction or a lock, once the operations in flight have ended."""
    if database.kind == "sqlite":
        await database.query("UPDATE sessions SET peer = peer WHERE id = 'chat'")
        return

    async def no_transaction_is_open() -> bool:
        return not await database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%'"
        )

    await until(no_transaction_is_open)


@pytest.mark.parametrize("verb", WRITES)
async def test_a_cancelled_write_is_complete_or_absent(database: Database, verb: str) -> None:
    await prepare(database, verb)
    async with SessionsDB(database.url, limits=Limits(children=10_000, pending=10_000)) as db:
        calls = 0

        def call() -> Coroutine[Any, Any, Any]:
            nonlocal calls
            calls += 1
            return WRITES[verb](db, calls)

        async def check(_finished: bool) -> None:
            # A cancelled write goes on. It must not change the version under the next call.
            in_flight = db._database.runner.writes_in_flight()
            if in_flight is not None:
                await in_flight
            await assert_no_open_transaction(database)
            await assert_no_incomplete_write(database)
            assert (await db.broker.get("chat")).id == "chat"

        assert await cancel_everywhere(call, check, step=0.002) > 0
        assert calls < SESSIONS_TO_REMOVE
        # The operations in flight have ended. The handle works as before.
        await db.broker.send("chat", "still")
        await db.store.append("chat", TWO)


@pytest.mark.parametrize("verb", READS)
async def test_a_cancelled_read_leaves_nothing_behind(database: Database, verb: str) -> None:
    await prepare(database, verb)
    async with SessionsDB(database.url) as db:
        kept = CACHED_CONNECTIONS if database.kind == "postgresql" else 0
        before = checked_out(db.engine) + kept

        async def check(_finished: bool) -> None:
            await assert_no_open_transaction(database)
            await asyncio.wait_for(db.broker.send("chat", "still"), 10)
            await asyncio.wait_for(READS[verb](db, 0), 10)

        assert await cancel_everywhere(lambda: READS[verb](db, 0), check, step=0.001) > 0
        listener = 1
        await until(lambda: checked_out(db.engine) <= before + listener)


async def test_callers_cancelled_at_random_leave_no_incomplete_write(
    database: Database,
) -> None:
    await prepare(database, "")
    async with SessionsDB(database.url, limits=Limits(pending=10_000)) as db:
        sent = appended = 0
        for round in range(10):
            sends = [asyncio.create_task(db.broker.send("chat", "x")) for _ in range(50)]
            appends = [asyncio.create_task(db.store.append("chat", TWO)) for _ in range(50)]
            for _ in range(round):
                await asyncio.sleep(0)
            for task in (*sends[::3], *appends[::3]):
                task.cancel()
            await asyncio.wait((*sends, *appends))
            sent += sum(not task.cancelled() for task in sends)
            appended += sum(not task.cancelled() for task in appends)
        details = await db.broker.get("chat")
        assert details.pending >= 1 + sent
        assert details.message_count >= 2 + 2 * appended
    await assert_no_incomplete_write(database)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_entering_can_be_cancelled_anywhere(empty_database: Database, kind: str) -> None:
    async def enter() -> None:
        async with SessionsDB(empty_database.url, migrate=True) as db:
            await db.broker.list()

    async def check(_finished: bool) -> None:
        if kind == "sqlite":
            await empty_database.query("CREATE TABLE IF NOT EXISTS mine (x)")
        else:
            await until(lambda: no_connection_is_left(empty_database))

    assert await cancel_everywhere(enter, check, step=0.01) > 0
    await enter()


async def no_connection_is_left(database: Database) -> bool:
    return not await database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'sessionsdb'"
    )
