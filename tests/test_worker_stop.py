"""Start, stop and cancel a worker, and the queries of an idle one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.operations.running_messages import read_running
from tests.support.turns import claim
from tests.support.waiting import until
from tests.support.work import SOON, running, user_and_reply
from tests.test_worker_leases import Hanging


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="somebody")
    return db


async def test_stop_claims_nothing_new_and_lets_turns_finish(db: SessionsDB) -> None:
    first, second = [await db.broker.send("chat", text) for text in "ab"]
    hanging = Hanging()
    worker = db.worker(hanging)
    task = asyncio.create_task(worker.run())
    await until(lambda: hanging.begun)
    stopping = asyncio.create_task(worker.stop(grace=30))
    await asyncio.sleep(0)
    assert not stopping.done()
    hanging.go.set()
    await stopping
    await task
    assert (await db.broker.outcome(first)).status == "done"
    later = await db.broker.outcome(second)
    assert (later.status, later.attempts) == ("pending", 0)
    assert worker.id is None


@asynccontextmanager
async def no_claims(database: Database) -> AsyncIterator[None]:
    """Let claims wait for a lock during the block."""
    if database.kind == "sqlite":
        other = sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None)
        with contextlib.closing(other):
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        return
    connection = await database.connect_to_postgres()
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE mailboxes IN EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def test_a_claim_that_is_answered_after_the_stop_starts_no_turn(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    hanging = Hanging()
    worker = db.worker(hanging, lease_seconds=3_600)
    async with no_claims(database):
        task = asyncio.create_task(worker.run())
        await until(lambda: worker._loop is not None and worker._loop._claims.in_flight is not None)
        stopping = asyncio.create_task(worker.stop(grace=30))
        await asyncio.sleep(0)
    await stopping
    await task
    assert hanging.begun == []
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("pending", 0)


async def test_after_the_grace_turns_are_released_without_an_attempt(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    hanging = Hanging()
    worker = db.worker(hanging, lease_seconds=3_600)
    task = asyncio.create_task(worker.run())
    await until(lambda: hanging.begun)
    asked = time.monotonic()
    await worker.stop(grace=0.05)
    await task
    assert time.monotonic() - asked < 3
    assert hanging.cancelled == ["a"]
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts, outcome.error) == ("pending", 0, None)

    async def handler(turn: Turn) -> str:
        assert turn.attempt == 1
        return "at once"

    async with SessionsDB(database.url) as other:
        assert await other.worker(handler).run_until_idle() == 1
    assert await db.store.load("chat") == user_and_reply("a", "at once")


async def test_a_second_stop_with_a_shorter_grace_ends_the_first(db: SessionsDB) -> None:
    await db.broker.send("chat", "a")
    hanging = Hanging()
    worker = db.worker(hanging)
    task = asyncio.create_task(worker.run())
    await until(lambda: hanging.begun)
    patient = asyncio.create_task(worker.stop(grace=3_600))
    await asyncio.sleep(0)
    await worker.stop(grace=0)
    await patient
    await task
    assert hanging.cancelled == ["a"]


async def test_a_worker_whose_task_is_cancelled_gives_everything_back(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")
    hanging = Hanging()
    task = asyncio.create_task(db.worker(hanging, lease_seconds=3_600).run())
    await until(lambda: hanging.begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("pending", 0)
    assert not (await db.broker.get("chat")).running


async def test_a_worker_that_is_cancelled_again_and_again_gives_everything_back(
    db: SessionsDB,
) -> None:
    """As by a scope of anyio, which cancels in each iteration of the event loop."""
    receipt = await db.broker.send("chat", "a")
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def tidy(turn: Turn) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(100):
                await asyncio.sleep(0)
            cleaned.set()
        return "never"

    task = asyncio.create_task(db.worker(tidy, lease_seconds=3_600).run())
    await begun.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    assert cleaned.is_set()
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("pending", 0)
    assert not (await db.broker.get("chat")).running
    await until(lambda: not watchdogs())


async def test_a_worker_runs_in_a_task_that_was_cancelled_before(db: SessionsDB) -> None:
    """A service that was asked to end drains its inboxes first."""
    receipt = await db.broker.send("chat", "a")
    waits = asyncio.Event()

    async def handler(turn: Turn) -> str:
        if turn.attempt == 1:
            raise asyncio.CancelledError  # as of a cancelled task that the handler awaited
        return "ok"

    async def service() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            waits.set()
            await asyncio.Event().wait()
        worker = db.worker(handler, lease_seconds=3_600, retry=SOON)
        return await worker.run_until_idle()

    task = asyncio.create_task(service())
    await waits.wait()
    task.cancel()
    async with asyncio.timeout(20):
        assert await task == 1
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("done", 2)


def watchdogs() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if "watchdog" in one.name]


async def test_a_worker_stops_while_blocking_tools_hold_all_threads_of_the_loop(
    db: SessionsDB,
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
    await db.broker.send("chat", "a")
    begun, go = threading.Event(), threading.Event()

    def tool() -> None:
        begun.set()
        go.wait(60)

    async def handler(turn: Turn) -> str:
        await asyncio.to_thread(tool)
        return "ok"

    worker = db.worker(handler)
    task = asyncio.create_task(worker.run())
    await until(begun.is_set)
    try:
        async with asyncio.timeout(30):
            await worker.stop(grace=0)
            await task
    finally:
        go.set()


async def test_cancelling_a_worker_at_any_moment_leaves_no_lease_behind(
    db: SessionsDB, database: Database
) -> None:
    for n in range(4):
        await db.broker.register(f"s{n}", channel="test", peer="p")
    for steps in range(0, 60, 2):
        for n in range(4):
            await db.broker.send(f"s{n}", f"round {steps}")

        async def handler(turn: Turn) -> str:
            await asyncio.sleep(0)
            return "ok"

        task = asyncio.create_task(db.worker(handler, lease_seconds=3_600).run())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert await database.value("SELECT count(*) FROM mailboxes WHERE owner IS NOT NULL") == 0
        attempts = await database.query(
            "SELECT DISTINCT attempts FROM inbox WHERE status <> 'done'"
        )
        assert attempts in ([], [(0,)])

    async def rest(turn: Turn) -> str:
        return "ok"

    await db.worker(rest).run_until_idle()
    assert await database.query("SELECT DISTINCT status, attempts FROM inbox") == [("done", 1)]
    assert await database.value("SELECT count(*) FROM messages") == 2 * 4 * 30


async def test_a_worker_can_be_started_again_but_not_twice_at_once(db: SessionsDB) -> None:
    async def handler(turn: Turn) -> str:
        return "ok"

    worker = db.worker(handler)
    assert await worker.run_until_idle() == 0
    await db.broker.send("chat", "a")
    assert await worker.run_until_idle() == 1
    task = asyncio.create_task(worker.run())
    await until(lambda: worker.id)
    with pytest.raises(InvalidArgument, match="running already"):
        await worker.run()
    await worker.stop()
    await task


async def test_stopping_a_worker_that_does_not_run_is_no_error(db: SessionsDB) -> None:
    await db.worker(Hanging()).stop()


async def test_run_until_idle_waits_for_what_another_worker_holds(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    hanging = Hanging()
    async with SessionsDB(database.url) as other, running(db, hanging):
        await until(lambda: hanging.begun)
        idle = asyncio.create_task(other.worker(hanging, poll_interval=0.05).run_until_idle())
        await until(lambda: db.broker.outcome(receipt))
        assert not idle.done()
        hanging.go.set()
        assert await idle == 0
    assert (await db.broker.outcome(receipt)).status == "done"


async def test_a_handler_that_blocks_the_event_loop_is_warned_about_by_name(
    db: SessionsDB, caplog: pytest.LogCaptureFixture
) -> None:
    await db.broker.send("chat", "a")

    async def sleepyhead(turn: Turn) -> str:
        time.sleep(0.6)  # noqa: ASYNC251 - just what it must not do
        return "ok"

    with caplog.at_level(logging.WARNING, "sessionsdb.worker"):
        await db.worker(sleepyhead, lease_seconds=0.6).run_until_idle()
    [warning] = [r.getMessage() for r in caplog.records if "blocked the event loop" in r.message]
    assert "sleepyhead for session chat" in warning
    assert "time.sleep(0.6)" in warning


async def test_an_idle_worker_asks_at_most_one_cheap_query_a_poll(
    db: SessionsDB, database: Database
) -> None:
    """Counted between two polls of a worker that polls often."""
    looks: list[float] = []
    claims: list[int] = []

    async def handler(turn: Turn) -> str:
        return "ok"

    async with running(db, handler, poll_interval=0.1) as worker:
        assert worker._loop is not None
        due, claim = worker._loop._read_next_due, worker._loop._fill_slots

        async def counted(*, until_idle: bool):
            looks.append(time.monotonic())
            return await due(until_idle=until_idle)

        async def claimed() -> None:
            claims.append(len(looks))
            await claim()

        worker._loop._read_next_due, worker._loop._fill_slots = counted, claimed
        await until(lambda: len(looks) >= 14)
    # The listener wakes the worker when it starts: a wake-up may have been missed.
    assert [when for when in claims if when > 4] == []
    steady = looks[4:]
    gaps = [later - earlier for earlier, later in itertools.pairwise(steady)]
    assert min(gaps) >= 0.075, "polls come no faster than the interval, less its jitter"
    assert len({round(gap, 4) for gap in gaps}) > 3, "and they are spread by jitter"


async def test_the_running_messages_of_any_number_of_leases_are_found(db: SessionsDB) -> None:
    """A stop reads them. A statement has at most 32,767 parameters, and a key is in it twice."""
    await db.broker.send("chat", "a")
    [lease] = await claim(db)
    keys = [lease.key, *(("default", f"other {n}") for n in range(8_200))]
    found = await open_database_of(db).read(partial(read_running, keys=keys))
    assert {key: len(turn.begun) for key, turn in found.items()} == {lease.key: 1}
