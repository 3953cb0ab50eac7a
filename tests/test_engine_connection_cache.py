"""The connection cache: idle connections, and the age of their plans."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Connection, text

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.engine.postgresql import connection_cache
from sessionsdb.engine.postgresql.connection_cache import ConnectionCache
from tests.support.pools import checked_out
from tests.support.proxy import proxy_to
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("kind", ["postgresql"])


async def test_a_connection_in_use_while_the_cache_closes_goes_back_to_the_pool(
    database: Database, db: SessionsDB
) -> None:
    cache = ConnectionCache(db.engine, max_connections=2, autocommit=True)
    before = checked_out(db.engine)

    def wait_for_the_lock(connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock_shared(1)"))

    async with db.engine.connect() as other:
        await other.execute(text("SELECT pg_advisory_lock(1)"))
        waiting = asyncio.create_task(cache.run(wait_for_the_lock))
        await until(
            lambda: database.value(
                "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
        )
        await cache.close()
        await other.execute(text("SELECT pg_advisory_unlock(1)"))
        await waiting
    assert checked_out(db.engine) == before
    cache.open()
    await cache.run(lambda connection: connection.execute(text("SELECT 1")).all())
    assert checked_out(db.engine) == before + 1
    await cache.close()


async def test_plans_are_discarded_after_many_statements_only(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_cache, "REPLAN_SECONDS", 0.0)
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        for _ in range(connection_cache.REPLAN_STATEMENTS // 2):
            await db.broker.history("chat")
        assert "DISCARD PLANS" not in proxy.executed
        for _ in range(connection_cache.REPLAN_STATEMENTS):
            await db.broker.history("chat")
        assert proxy.executed.count("DISCARD PLANS") == 1


@pytest.mark.parametrize("kept", [0, 1])
async def test_connections_are_in_autocommit_mode_until_they_are_back_in_the_pool(
    db: SessionsDB, kept: int
) -> None:
    cache = ConnectionCache(db.engine, max_connections=kept, autocommit=True)

    def transactions(connection: Connection) -> set[int]:
        current = text("SELECT txid_current()")
        return {connection.execute(current).scalar_one() for _ in range(2)}

    for _ in range(2):
        assert len(await cache.run(transactions)) == 2
    await cache.close()
    async with db.engine.connect() as connection:
        assert len(await connection.run_sync(transactions)) == 1


async def test_the_isolation_level_of_a_cached_connection_is_no_event(db: SessionsDB) -> None:
    """An event of the engine would make each statement look for listeners, which takes 3 µs."""
    cache = ConnectionCache(db.engine, max_connections=1, autocommit=True)
    has_events = await cache.run(
        # Its own: a listener for all engines is not meant.
        lambda connection: vars(connection.engine).get("_has_events", False)
    )
    await cache.close()
    assert not has_events


@pytest.mark.parametrize("kept", [0, 1])
async def test_an_operation_that_fails_gives_its_connection_back(db: SessionsDB, kept: int) -> None:
    cache = ConnectionCache(db.engine, max_connections=kept, autocommit=True)
    before = checked_out(db.engine)

    def fail(connection: Connection) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await cache.run(fail)
    assert checked_out(db.engine) == before
