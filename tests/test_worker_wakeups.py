"""Wake-ups: idle workers and waiting callers learn of a commit at once, or by their next poll."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, SpawnRequest, StorageError, Turn, Worker
from sessionsdb.database import open_database_of
from tests.support.turns import waits_under_way
from tests.support.waiting import until
from tests.support.work import running


async def handler(turn: Turn) -> str:
    return f"re {turn.text}"


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="somebody")
    return db


async def answered(db: SessionsDB, text: str) -> float:
    began = time.monotonic()
    outcome = await db.broker.wait(await db.broker.send("chat", text), timeout=30)
    assert outcome.status == "done"
    return time.monotonic() - began


async def test_a_worker_that_hardly_polls_hears_of_a_send_through_another_handle(
    db: SessionsDB, database: Database
) -> None:
    async with SessionsDB(database.url) as other, running(other, handler, poll_interval=3_600):
        await answered(db, "let it start")
        times = sorted([await answered(db, f"m{n}") for n in range(11)])
    assert times[5] < 0.3, f"the median round trip took {times[5]:.3f} s"


async def test_a_worker_hears_of_a_spawn_a_requeue_and_a_callers_own_commit(
    db: SessionsDB, database: Database
) -> None:
    broken = True

    async def sometimes(turn: Turn) -> str:
        if broken and turn.text == "bad":
            raise ValueError
        return "ok"

    async with (
        SessionsDB(database.url) as other,
        running(other, sometimes, poll_interval=3_600, max_attempts=1),
    ):
        receipt = await db.broker.send("chat", "bad")
        assert (await db.broker.wait(receipt, timeout=30)).status == "dead"
        broken = False
        await db.broker.requeue(receipt)
        assert (await db.broker.wait(receipt, timeout=30)).status == "done"
        async with db.engine.begin() as connection:
            receipt = await db.broker.send("chat", "in my transaction", connection=connection)
        assert (await db.broker.wait(receipt, timeout=30)).status == "done"


class Both:
    """A handler that lets the first turn wait for the test, and two later ones for one another."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.together = asyncio.Barrier(2)

    async def __call__(self, turn: Turn) -> str:
        if not self.begun.is_set():
            self.begun.set()
            await self.go_on.wait()
        else:
            await self.together.wait()
        return "ok"


def fail_next_claim(worker: Worker) -> None:
    """Let the next claim of a worker fail, as with a lost connection."""
    loop: Any = worker._loop
    claim = loop._claim

    async def lost(slots: int) -> int:
        loop._claim = claim
        raise StorageError("the connection was lost")

    loop._claim = lost


def tellings(worker: Worker) -> list[Any]:
    """Collect the topics of which a worker's loop tells others without a write."""
    told: list[Any] = []
    database: Any = worker._loop._database
    wake = database.wake

    def noted(topics: Any) -> None:
        told.append(topics)
        wake(topics)

    database.wake = noted
    return told


@pytest.mark.parametrize("claim_fails", [False, True], ids=["", "its claim fails"])
async def test_a_full_worker_tells_the_others_what_its_commit_made_ready(
    db: SessionsDB, database: Database, claim_fails: bool
) -> None:
    handle = Both()
    rarely = {"poll_interval": 3_600, "lease_seconds": 3_600}
    async with (
        SessionsDB(database.url) as one,
        SessionsDB(database.url) as other,
        running(one, handle, concurrency=1, **rarely) as full,
    ):
        child = await db.broker.spawn("chat", SpawnRequest(prompt="count", report="each"))
        await asyncio.wait_for(handle.begun.wait(), 60)
        async with running(other, handle, concurrency=1, **rarely):
            # Nothing is ready: the child runs. Its commit makes it ready, and its parent.
            receipt = await db.broker.send(child.id, "go on")
            told = tellings(full)
            if claim_fails:
                fail_next_claim(full)
            handle.go_on.set()
            assert (await db.broker.wait(receipt, timeout=30)).status == "done"
        assert ("work",) in told, "on SQLite the others also see the commit"


async def at_rest(db: SessionsDB, worker: Worker) -> None:
    """Let an idle worker run a turn, and wait until its loop looked behind it and found nothing."""
    loop: Any = worker._loop
    look, committed_at_looks = loop._read_next_due, [0]

    async def noted(*, until_idle: bool) -> Any:
        due = await look(until_idle=until_idle)
        committed_at_looks.append(loop._committed)
        return due

    loop._read_next_due = noted
    await db.broker.register("side", channel="test", peer="somebody")
    receipt = await db.broker.send("side", "hello")
    assert (await db.broker.wait(receipt, timeout=30)).status == "done"
    await until(lambda: committed_at_looks[-1] > 0)


async def test_a_stopping_worker_tells_the_others_what_its_commit_made_ready(
    db: SessionsDB, database: Database
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(turn: Turn) -> str:
        begun.set()
        await go_on.wait()
        return "ok"

    async with SessionsDB(database.url) as one, SessionsDB(database.url) as other:
        # The others also look when its lease runs out.
        worker = one.worker(slow, poll_interval=3_600, concurrency=1, lease_seconds=3_600)
        run = asyncio.create_task(worker.run())
        await db.broker.send("chat", "first")
        await asyncio.wait_for(begun.wait(), 60)
        async with running(other, handler, poll_interval=3_600) as idle:
            second = await db.broker.send("chat", "second")
            await at_rest(db, idle)  # it has heard of the second, which was not ready
            stop = asyncio.create_task(worker.stop(grace=60))
            await asyncio.sleep(0)  # it claims no more
            go_on.set()
            assert (await db.broker.wait(second, timeout=30)).status == "done"
        await stop
        await run


async def test_polling_serves_when_every_hint_is_lost(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        SessionsDB(database.url) as other,
        running(other, handler, poll_interval=0.1),
    ):
        await answered(db, "first")
        for handle in (db, other):
            monkeypatch.setattr(open_database_of(handle).notifier, "notify", lambda *hint: None)
            monkeypatch.setattr(open_database_of(handle).notifier, "_notify_all", lambda: None)
        assert await answered(db, "without hints") < 10


async def test_a_lost_listener_reconnects_and_hears_again(
    db: SessionsDB, database: Database
) -> None:
    if database.kind == "sqlite":
        return  # there is no listener: the file itself is watched
    async with SessionsDB(database.url) as other, running(other, handler, poll_interval=3_600):
        await answered(db, "first")
        listening = "SELECT pid FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
        [(before,), *_] = await until(lambda: database.query(listening))
        await database.query(f"SELECT pg_terminate_backend(pid) FROM ({listening}) AS l")
        await until(lambda: new_listener(database, listening, before))
        assert await answered(db, "after it came back") < 5


async def new_listener(database: Database, listening: str, before: int) -> bool:
    return any(pid != before for (pid,) in await database.query(listening))


async def test_a_thousand_waiters_cost_a_query_a_poll_and_no_connection(
    db: SessionsDB, database: Database
) -> None:
    looks = 0
    look = open_database_of(db).outcome_waiter._poll_once

    async def counted(messages: list[Any]) -> bool:
        nonlocal looks
        looks += 1
        return await look(messages)

    open_database_of(db).outcome_waiter._poll_once = counted
    receipts = [await db.broker.send("chat", f"m{n}") for n in range(1_000)]
    waiting = [asyncio.create_task(db.broker.wait(r, timeout=60)) for r in receipts]
    await until(lambda: waits_under_way(db) == 1_000)
    await until(lambda: looks >= 2)
    before, began = looks, time.monotonic()
    await until(lambda: looks >= before + 3)
    assert time.monotonic() - began > 0.5, "they look at the interval, not one by one"
    async with SessionsDB(database.url) as other:
        await other.worker(handler, batch=100).run_until_idle()
    outcomes = await asyncio.gather(*waiting)
    assert {outcome.status for outcome in outcomes} == {"done"}
