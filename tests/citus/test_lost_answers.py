"""Writes whose answers are lost, on Citus."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from sqlalchemy import make_url

from devtools.databases import Database
from sessionsdb import SessionsDB, StorageError
from sessionsdb.engine.postgresql import recovery
from tests import test_engine_lost_answers
from tests.citus.conftest import COORDINATOR
from tests.support.proxy import Proxy
from tests.support.waiting import until
from tests.test_engine_lost_answers import *  # noqa: F403  its tests run here again
from tests.test_engine_lost_answers import CUTS, HELLO, When, state


async def waiting_for_locks(database: Database) -> int:
    """How many statements wait for locks of the nodes, where the rows are."""
    return int(await database.value("SELECT count(*) FROM citus_lock_waits"))


@pytest.fixture(autouse=True)
def locks_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_engine_lost_answers, "waiting_for_locks", waiting_for_locks)


@pytest.mark.parametrize("when", CUTS)
@pytest.mark.parametrize("times", [1, 3])
async def test_an_append_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB, when: When, times: int
) -> None:
    """Each append runs in a transaction, so a cut before its COMMIT takes it back."""
    proxy.cut("INSERT INTO messages", when, times=times)
    assert await db.store.append("chat", [HELLO] * 3) == 2
    assert proxy.cuts == times
    assert await state(database) == (2, 4, 1, 1, 4, 1)
    proxy.cut("COMMIT", when)
    assert await db.store.append("chat", [HELLO]) == 3
    assert proxy.cuts == 1
    assert await state(database) == (3, 5, 1, 1, 5, 1)


async def test_a_send_that_a_node_commits_after_the_lookup_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB
) -> None:
    """The coordinator committed, but could not tell the nodes, which have prepared the send.

    Its answer is lost as well. Until Citus recovers the transaction, no read finds the message.
    """
    admin = await asyncpg.connect(COORDINATOR)
    proxy.cut("COMMIT", "after")
    try:
        # The coordinator waits for a standby between its commit and the commits of the nodes.
        await admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'none'")
        await admin.execute("SELECT pg_reload_conf()")
        send = asyncio.create_task(db.broker.send("chat", "important"))
        role = str(make_url(database.url).username)
        await until(lambda: waits_for_a_standby(admin, role))
        for host, port in await admin.fetch("SELECT nodename, nodeport FROM pg_dist_node"):
            node = await asyncpg.connect(COORDINATOR, host=host, port=port)
            await node.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'PREPARE TRANSACTION%' AND state = 'idle' AND usename = $1",
                role,
            )
            await node.close()
    finally:
        await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await admin.execute("SELECT pg_reload_conf()")
    assert proxy.cuts == 1
    while not send.done():
        await asyncio.wait([send], timeout=1.0)
        await admin.execute("SELECT recover_prepared_transactions()")
    await admin.close()
    assert (await send).position == 2
    assert await state(database) == (1, 1, 2, 2, 1, 2)


async def waits_for_a_standby(admin: asyncpg.Connection, role: str) -> bool:
    return bool(
        await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = $1",
            role,
        )
    )


async def test_an_answer_that_is_lost_for_good_is_an_unknown_result(
    database: Database, proxy: Proxy, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RECOVERY_SECONDS", 0.2)
    proxy.cut("COMMIT", "after", for_good=True)
    send = asyncio.create_task(db.broker.send("chat", "important"))
    await until(lambda: proxy.cuts == 1)
    await proxy.down()
    with pytest.raises(StorageError, match="unknown; read before you repeat it") as lost:
        await asyncio.wait_for(send, 20)
    assert isinstance(lost.value.__cause__, OSError)
    await proxy.up()
    assert (await state(database))[2] in (1, 2)
