"""The connection cache: idle connections, and the age of their plans."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Connection, text

from sessionsdb import SessionsDB
from sessionsdb.engine.postgresql import connection_cache
from sessionsdb.engine.postgresql.connection_cache import ConnectionCache
from tests.support.databases import Database
from tests.support.pools import checked_out
from tests.support.proxy import proxy_to
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("kind", ["postgresql"])


async def test_a_connection_in_use_while_the_cache_closes_goes_back_to_the_pool(
    database: Database, db: SessionsDB
) -> None:
    cache = ConnectionCache(
        db.engine.execution_options(isolation_level="AUTOCOMMIT"), max_connections=2
    )
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
