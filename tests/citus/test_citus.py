"""The package on Citus, while connections are killed and while a schema moves to another node."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from functools import partial

import asyncpg
import pytest
from sqlalchemy import make_url

from devtools.databases import Database
from sessionsdb import Receipt, SessionsDB, StorageError, Turn
from sessionsdb.admin.doctor import examine
from sessionsdb.reports import queries
from sessionsdb.reports.catalogue import REPORTS
from tests.citus.conftest import COORDINATOR
from tests.support.work import SOON
from tests.test_hijacking import refused, work
from tests.test_namespaces import VERBS, answer


async def test_every_verb_and_every_turn_works_on_citus(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        for namespace in ("default", "acme"):
            tenant = db.in_namespace(namespace)
            await work(tenant)
            for name, verb in VERBS.items():
                for id in ("other", "theirs"):
                    answered = await answer(verb, tenant, id)
                    assert not refused(answered), (name, answered)
        for name in REPORTS:
            await queries.read(db, name)


async def test_the_doctor_says_what_does_not_hold_on_citus(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        report = await examine(db, fix=True)
    [note] = [finding for finding in report.findings if finding.check == "citus"]
    assert report.healthy
    assert "clock" in note.meaning
    assert "grant-reader" in note.meaning


async def test_tables_that_are_distributed_by_rows_are_refused_when_the_database_is_opened(
    database: Database,
) -> None:
    admin = await asyncpg.connect(COORDINATOR)
    name = f"rows_{os.getpid()}"
    url = f"{COORDINATOR}{'&' if '?' in COORDINATOR else '?'}schema={name}"
    try:
        await admin.execute(f"CREATE SCHEMA {name}")
        async with SessionsDB(url, migrate=True):
            pass
        await admin.execute(
            "SELECT create_distributed_table($1::regclass, 'namespace', colocate_with => 'none')",
            f"{name}.sessions",
        )
        with pytest.raises(StorageError, match="distributes the table sessions by rows"):
            async with SessionsDB(url):
                pass
    finally:
        await admin.execute(f"DROP SCHEMA {name} CASCADE")
        await admin.close()


async def test_nothing_is_lost_or_doubled_while_connections_are_killed(
    database: Database,
) -> None:
    await send_and_work(database, 8.0, disturb=kill_connections)


async def test_nothing_is_lost_or_doubled_while_the_schema_moves_to_another_node(
    database: Database,
) -> None:
    await send_and_work(database, 6.0, disturb=move)


async def kill_connections(admin: asyncpg.Connection, role: str) -> None:
    await asyncio.sleep(0.5)
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
        " ORDER BY random() LIMIT 3",
        role,
    )


async def move(admin: asyncpg.Connection, role: str) -> None:
    await asyncio.sleep(0.5)
    nodes = await admin.fetch(
        "SELECT nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards ORDER BY 2"
    )
    here = await admin.fetchrow(
        "SELECT nodename, nodeport FROM citus_shards WHERE table_name::text = $1 LIMIT 1",
        f"{role}.sessions",
    )
    [there, *_] = [node for node in nodes if tuple(node) != tuple(here)]
    # The shards of the move before are dropped by a cleanup, which waits for their readers.
    await admin.execute("CALL citus_cleanup_orphaned_resources()")
    await admin.execute(
        "SELECT citus_schema_move($1::regnamespace, $2, $3, 'block_writes')", role, *there
    )


async def send_and_work(database: Database, seconds: float, disturb) -> None:
    """Send and handle messages for a while. Each accepted one must be handled once."""
    role = str(make_url(database.url).username)
    accepted: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    admin = await asyncpg.connect(COORDINATOR)

    async def handle(turn: Turn) -> str:
        return f"re {turn.text}"

    async def send(db: SessionsDB, id: str) -> None:
        for number in itertools.count():
            if loop.time() > deadline:
                return
            text = f"{id} {number}"
            try:
                receipt: Receipt = await db.broker.send(id, text, idempotency_key=text)
            except StorageError:
                receipt = await repeat(partial(db.broker.send, id, text, idempotency_key=text))
            assert receipt.position == number + 1
            accepted[id] += 1

    async def repeat(call):
        for _ in range(50):
            try:
                return await call()
            except StorageError:
                await asyncio.sleep(0.1)
        return await call()

    async def disturbances() -> int:
        for count in itertools.count():
            if loop.time() > deadline:
                return count
            try:
                await disturb(admin, role)
            except asyncpg.InternalServerError as error:
                if "leftover" not in str(error):
                    raise
        return 0

    try:
        async with SessionsDB(database.url) as db:
            ids = [f"s{n}" for n in range(8)]
            for id in ids:
                await db.broker.register(id, channel="c", peer="p")
            worker = db.worker(handle, retry=SOON, lease_seconds=2.0, poll_interval=0.1)
            running = asyncio.create_task(worker.run())
            done = asyncio.gather(disturbances(), *(send(db, id) for id in ids))
            assert (await done)[0] > 0
            await worker.stop()
            await running
            await repeat(lambda: db.worker(handle, retry=SOON).run_until_idle())
            assert not await db.broker.dead_letters()
            for _ in range(3):  # from the second load on the rows are remembered
                loaded = [await db.store.load(ids[0])]
                loaded += await asyncio.gather(*map(db.store.load, ids[1:]))
                for id, transcript in zip(ids, loaded, strict=True):
                    said = [m["content"] for m in transcript or []]
                    wanted = [f"{p}{id} {n}" for n in range(accepted[id]) for p in ("", "re ")]
                    assert said == wanted
    finally:
        await admin.close()
    assert accepted.total() > 50
