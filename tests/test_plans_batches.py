"""A batch costs the sum of its requests: no request is compared with all the others."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Commit
from tests.support.plans import explain_everything, plans_are_in, watched

BATCH = 64
IDS = [f"s{number}" for number in range(BATCH)]


async def use(db: SessionsDB) -> None:
    """Run each hot statement for many sessions at once."""
    await asyncio.gather(
        *(db.store.append(id, [{"role": "user", "content": "hello"}]) for id in IDS)
    )
    await asyncio.gather(*(db.broker.send(id, "hello") for id in IDS))
    await asyncio.gather(
        *(db.broker.send(id, "hello", sender="s0", idempotency_key="key") for id in IDS)
    )
    run = open_database_of(db).runner.write_autocommit
    while leases := await run(
        partial(
            mailbox.claim, worker="w", namespaces=["default"], slots=BATCH, batch=1,
            lease_seconds=60,
        )
    ):  # fmt: skip
        fences = [lease.fence for lease in leases]
        renew = partial(mailbox.heartbeat, worker="w", fences=fences, lease_seconds=60)
        for wait_for_locks in (False, True):
            assert len(await run(partial(renew, wait_for_locks=wait_for_locks))) == BATCH
        turns = [Commit(lease, [StoredMessage("user", "hello", None)]) for lease in leases]
        assert await run(partial(mailbox.commit, worker="w", turns=turns)) == [True] * BATCH
    await asyncio.gather(*(db.broker.history(id) for id in IDS))


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_no_request_of_a_batch_is_compared_with_all_the_others(database: Database) -> None:
    await explain_everything(database)
    async with watched(database) as (db, watch):
        await use(db)
        await database.query(
            "INSERT INTO inbox (namespace, session_id, position, status, content, enqueued_at)"
            " SELECT namespace, id, -n, 'done', 'hello', now()"
            " FROM sessions, generate_series(1, 200) AS n"
        )
        await database.query("VACUUM ANALYZE")
    async with watched(database) as (db, watch):  # planned with the present statistics
        for _ in range(2):
            await plans_are_in()
            watch.clear()
            await use(db)
    await plans_are_in()
    statements = [plan for plan in watch.plans if "sessionsdb_version" not in plan.sql]
    assert len(statements) >= 8
    for plan in statements:
        assert plan.pairs_discarded <= BATCH, plan
