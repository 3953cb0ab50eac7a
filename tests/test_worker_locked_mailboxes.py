"""A transaction of a caller that keeps a mailbox locked holds up its own session's lease only.

``send`` with ``connection=`` locks the mailbox of a session until the caller commits. SQLite has no
row locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb import Receipt, SessionsDB, SpawnRequest, Turn, Worker
from sessionsdb.database import open_database_of
from sessionsdb.handlers import echo
from sessionsdb.operations import mailbox
from sessionsdb.operations.keys import Fence
from sessionsdb.worker import loop
from sessionsdb.worker.leases import MAX_WAITING
from tests.support.live import Hanging
from tests.support.turns import WORKER, claim
from tests.support.waiting import until
from tests.support.work import expire_leases, running

LONG = {"lease_seconds": 3_600, "poll_interval": 3_600}
"""Only the renewals of the test happen."""


@pytest.fixture
def kind() -> str:
    return "postgresql"


async def running_turns(db: SessionsDB, *ids: str) -> None:
    for id in ids:
        await db.broker.register(id, channel="test", peer="p")
        await db.broker.send(id, "go")


@asynccontextmanager
async def locked(db: SessionsDB, *ids: str) -> AsyncIterator[None]:
    """Send to sessions in a transaction of the caller, which ends with the block."""
    async with db.engine.connect() as connection, connection.begin():
        for id in ids:
            await db.broker.send(id, "in my transaction", connection=connection)
        yield


async def lease_end(database: Database, id: str) -> float:
    sql = f"SELECT extract(epoch FROM lease_until) FROM mailboxes WHERE session_id = '{id}'"
    return float(await database.value(sql) or 0)


async def renew(worker: Worker) -> None:
    """Have the worker renew its leases now."""
    assert worker._loop is not None
    async with asyncio.timeout(20):
        await worker._loop._leases._renew()


async def test_a_locked_session_costs_the_others_of_its_worker_no_lease(
    db: SessionsDB, database: Database
) -> None:
    await running_turns(db, "locked", "free")
    hanging = Hanging()
    async with SessionsDB(database.url) as caller, running(db, hanging, lease_seconds=2.0):
        await hanging.begun(2)
        begun = await lease_end(database, "free")
        async with locked(caller, "locked"):

            async def two_leases_later() -> bool:
                end = await lease_end(database, "free")
                return end > begun + 4 or ("free", "lease") in hanging.stopped

            await until(two_leases_later)
            assert hanging.stopped == [("locked", "lease")]
        hanging.release()
        receipts = [Receipt(session_id=id, position=1) for id in ("free", "locked")]
        free, behind = [await db.broker.wait(one, timeout=20) for one in receipts]
    assert (free.status, free.attempts) == ("done", 1)
    assert (behind.status, behind.attempts) == ("done", 2)


async def test_a_session_is_renewed_as_soon_as_it_is_not_locked_any_more(
    db: SessionsDB, database: Database
) -> None:
    await running_turns(db, "locked", "free")
    hanging = Hanging()
    async with SessionsDB(database.url) as caller, running(db, hanging, **LONG) as worker:
        await hanging.begun(2)
        ends = {id: await lease_end(database, id) for id in ("locked", "free")}
        async with locked(caller, "locked"):
            await renew(worker)
            assert await lease_end(database, "free") > ends["free"]
            assert await lease_end(database, "locked") == ends["locked"]
            assert hanging.stopped == []

        async def renewed() -> bool:
            return await lease_end(database, "locked") > ends["locked"]

        await until(renewed)
        hanging.release()
        outcome = await db.broker.wait(Receipt(session_id="locked", position=1), timeout=20)
    assert (outcome.status, outcome.attempts) == ("done", 1)


async def test_a_lease_that_was_taken_behind_a_lock_is_lost(
    db: SessionsDB, database: Database
) -> None:
    await running_turns(db, "locked", "free")
    hanging = Hanging()
    async with running(db, hanging, **LONG) as worker:
        await hanging.begun(2)
        thief = await database.connect_to_postgres()
        async with thief.transaction():
            await thief.execute(
                "UPDATE mailboxes SET owner = 'another', epoch = epoch + 1"
                " WHERE session_id = 'locked'"
            )
            await renew(worker)
            assert hanging.stopped == []
        await thief.close()
        await until(lambda: hanging.stopped)
        assert hanging.stopped == [("locked", "lease")]


async def test_many_locked_sessions_take_few_connections(
    db: SessionsDB, database: Database
) -> None:
    many = [f"s{n}" for n in range(30)]
    await running_turns(db, *many, "free")
    hanging = Hanging()
    async with (
        SessionsDB(database.url) as caller,
        running(db, hanging, concurrency=40, **LONG) as worker,
    ):
        await hanging.begun(31)
        async with locked(caller, *many):
            for _ in range(3):
                end = await lease_end(database, "free")
                await renew(worker)
                assert await lease_end(database, "free") > end
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            assert await until(lambda: database.value(waiting)) <= MAX_WAITING
            await asyncio.wait_for(db.broker.send("free", "one more"), 10)
        assert hanging.stopped == []
        hanging.release()


async def test_a_lease_that_ran_out_behind_a_lock_is_not_renewed(
    db: SessionsDB, database: Database
) -> None:
    """Its turn was given up, so nobody would run the session until the end of a new lease."""
    await running_turns(db, "expired", "live")
    leases = await claim(db, slots=2)
    await database.query(
        "UPDATE mailboxes SET lease_until = now() - interval '1 minute'"
        " WHERE session_id = 'expired'"
    )
    renewed = await heartbeat(db, [lease.fence for lease in leases], wait_for_locks=True)
    assert renewed == {("default", "live")}
    # Without a lock between, the turn goes on: nobody has taken the session.
    renewed = await heartbeat(db, [lease.fence for lease in leases])
    assert renewed == {("default", "expired"), ("default", "live")}


async def heartbeat(
    db: SessionsDB, fences: list[Fence], *, wait_for_locks: bool = False
) -> set[tuple[str, str]]:
    return await open_database_of(db).write_autocommit(
        partial(
            mailbox.heartbeat,
            worker=WORKER,
            fences=fences,
            lease_seconds=30.0,
            wait_for_locks=wait_for_locks,
        ),
        wakes=(),
    )


async def test_a_locked_parent_of_an_expired_child_holds_up_no_other_session(
    db: SessionsDB, database: Database
) -> None:
    """The child has died with its worker, and its parent would be told of it."""
    for id in ("parent", "other"):
        await db.broker.register(id, channel="test", peer="p")
    child = await db.broker.spawn("parent", SpawnRequest(prompt="go", report="each"))
    await claim(db)
    await expire_leases(database)
    async with SessionsDB(database.url) as caller:
        async with running(db, echo, max_attempts=1), locked(caller, "parent"):
            receipt = await db.broker.send("other", "hello")
            assert (await db.broker.wait(receipt, timeout=20)).status == "done"
        prompt = Receipt(session_id=child.id, position=1)
        async with running(db, echo, max_attempts=1):
            assert (await db.broker.wait(prompt, timeout=20)).status == "dead"


async def test_a_failed_turn_of_a_locked_session_keeps_no_other_failure_from_its_record(
    db: SessionsDB,
) -> None:
    await running_turns(db, "locked", "free")
    go, begun = asyncio.Event(), asyncio.Queue[str]()

    async def handler(turn: Turn) -> None:
        begun.put_nowait(turn.session.id)
        await go.wait()
        raise RuntimeError("it broke")

    async with running(db, handler, max_attempts=1, **LONG):
        for _ in range(2):
            await asyncio.wait_for(begun.get(), 20)
        async with locked(db, "locked"):
            go.set()
            receipt = Receipt(session_id="free", position=1)
            assert (await db.broker.wait(receipt, timeout=20)).status == "dead"
        receipt = Receipt(session_id="locked", position=1)
        assert (await db.broker.wait(receipt, timeout=20)).status == "dead"


async def test_a_worker_that_stops_releases_what_is_not_locked_and_ends(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RELEASE_SECONDS", 0.2)
    await running_turns(db, "locked", "free")
    hanging = Hanging()
    async with SessionsDB(database.url) as caller:
        worker = db.worker(hanging, **LONG)
        task = asyncio.create_task(worker.run())
        await hanging.begun(2)
        async with locked(caller, "locked"):
            async with asyncio.timeout(20):
                await worker.stop(grace=0)
                await task
            held = "SELECT session_id FROM mailboxes WHERE owner IS NOT NULL"
            assert await database.query(held) == [("locked",)]


async def test_a_worker_that_stops_waits_for_a_lock_that_is_short(
    db: SessionsDB, database: Database
) -> None:
    await running_turns(db, "locked")
    hanging = Hanging()
    async with SessionsDB(database.url) as caller:
        worker = db.worker(hanging, **LONG)
        task = asyncio.create_task(worker.run())
        await hanging.begun(1)
        async with locked(caller, "locked"):
            stop = asyncio.create_task(worker.stop(grace=0))
            await until(lambda: hanging.stopped)
        await asyncio.wait_for(stop, 20)
        await task
    assert await database.value("SELECT count(*) FROM mailboxes WHERE owner IS NOT NULL") == 0
