"""One turn at a time: leases, heartbeats, epochs, and how a turn loses its lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import InvalidArgument, LeaseLost, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.operations import expiry, lease_ends, mailbox
from sessionsdb.operations.inbox_types import Lease
from tests.support.turns import claim, commit
from tests.support.waiting import until
from tests.support.work import SOON, expire_leases, running, user_and_reply


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="somebody")
    return db


class Hanging:
    """A handler whose turns hang until ``go`` is set or they are cancelled."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, turn: Turn) -> str:
        self.begun.append(turn.text)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(turn.text)
            raise
        return f"re {turn.text}"


async def test_a_session_is_run_by_one_worker_at_a_time(db: SessionsDB, database: Database) -> None:
    for text in "abc":
        await db.broker.send("chat", text)
    hanging = Hanging()
    async with (
        SessionsDB(database.url) as other,
        running(db, hanging) as first,
        running(other, hanging) as second,
    ):
        await until(lambda: hanging.begun)
        await claim_again(first, second)
        assert hanging.begun == ["a"]
        details = await db.broker.get("chat")
        assert (details.pending, details.running) == (2, True)
        hanging.go.set()
        await until(lambda: len(hanging.begun) == 3)
    assert hanging.begun == ["a", "b", "c"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
async def test_handlers_run_under_the_eager_task_factory(db: SessionsDB) -> None:
    """Such a loop runs the first step of a task before the task is assigned to anything."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - new in 3.12
    receipts = [await db.broker.send("chat", text) for text in "ab"]

    async def handler(turn: Turn) -> str:
        return f"re {turn.text}"

    assert await db.worker(handler).run_until_idle() == 2
    outcomes = [await db.broker.outcome(receipt) for receipt in receipts]
    assert [(one.status, one.attempts) for one in outcomes] == [("done", 1)] * 2


async def claim_again(*workers: Any) -> None:
    """Let each worker claim once more."""
    for worker in workers:
        await worker._loop._fill_slots()


async def test_heartbeats_keep_a_long_turn_going(db: SessionsDB, database: Database) -> None:
    receipt = await db.broker.send("chat", "a")
    hanging = Hanging()
    async with running(db, hanging, lease_seconds=0.6):
        await until(lambda: hanging.begun)
        first = await database.value("SELECT lease_until FROM mailboxes")
        later = await until(lambda: changed(database, "SELECT lease_until FROM mailboxes", first))
        await until(lambda: changed(database, "SELECT lease_until FROM mailboxes", later))
        hanging.go.set()
        outcome = await db.broker.wait(receipt, timeout=20)
    assert (outcome.status, outcome.attempts) == ("done", 1)
    assert hanging.cancelled == []


async def changed(database: Database, sql: str, old: Any) -> Any:
    value = await database.value(sql)
    return value if value != old else None


async def test_a_worker_that_lost_its_lease_can_not_commit(
    db: SessionsDB, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await db.broker.register("peer", channel="test", peer="somebody")
    receipt = await db.broker.send("chat", "a")
    go, begun = asyncio.Event(), asyncio.Event()

    async def slow(turn: Turn) -> str:
        begun.set()
        turn.send("peer", "from the zombie")
        await go.wait()
        return "from the zombie"

    async def quick(turn: Turn) -> str:
        return "from the other"

    async with SessionsDB(database.url) as other:
        # With a free slot this worker might claim the message again.
        zombie = other.worker(slow, lease_seconds=3_600, concurrency=1)
        task = asyncio.create_task(zombie.run())
        await begun.wait()
        # As if all hints to it were lost: a hint that its lease was taken would cancel the turn.
        zombie._loop._leases._look_for_stops = lambda _: asyncio.sleep(0)
        await expire_leases(database)
        with caplog.at_level(logging.INFO, "sessionsdb.worker"):
            assert await db.worker(quick).run_until_idle() == 1
        assert "took back 1 expired lease\n" in caplog.text
        assert " stops after 1 turn\n" in caplog.text
        with caplog.at_level(logging.WARNING, "sessionsdb.worker"):
            go.set()
            await zombie.stop()
            await task
    assert "turn lost its lease" in caplog.text
    assert await db.store.load("chat") == user_and_reply("a", "from the other")
    assert await db.store.load("peer") == []
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("done", 2)


async def test_a_worker_that_is_given_its_own_lost_session_again_cancels_the_old_turn(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    hanging = Hanging()
    async with running(db, hanging, lease_seconds=3_600, poll_interval=0.05):
        await until(lambda: hanging.begun)
        await expire_leases(database)
        await until(lambda: hanging.cancelled)
        hanging.go.set()
        outcome = await db.broker.wait(receipt, timeout=30)
    assert (outcome.status, outcome.attempts) == ("done", 2)
    assert hanging.begun == ["a", "a"]
    assert await db.store.load("chat") == user_and_reply("a", "re a")


async def test_a_turn_whose_lease_was_taken_is_cancelled_by_the_next_heartbeat(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.send("chat", "a")
    hanging = Hanging()

    async def quick(turn: Turn) -> str:
        return "from the other"

    async with running(db, hanging, lease_seconds=1.0, poll_interval=60):
        await until(lambda: hanging.begun)
        await database.query("UPDATE mailboxes SET owner = 'somebody else', epoch = epoch + 1")
        await until(lambda: hanging.cancelled)
    assert hanging.cancelled == ["a"]


@pytest.mark.parametrize("how", ["end", "end subtree", "delete"])
async def test_ending_or_deleting_a_session_cancels_its_turn_within_a_heartbeat(
    db: SessionsDB, database: Database, how: str
) -> None:
    await db.broker.register("child", channel="test", peer="somebody", parent="chat")
    top = [await db.broker.send("chat", text) for text in ("a", "b")]
    below = await db.broker.send("child", "c")
    hanging = Hanging()
    lease = 1.5
    async with running(db, hanging, lease_seconds=lease):
        await until(lambda: len(hanging.begun) == 2)
        asked = time.monotonic()
        if how == "delete":
            await db.store.delete("chat", children="cascade")
        else:
            count = await db.broker.end("chat", subtree=how == "end subtree", reason="enough")
            assert count == (2 if how == "end subtree" else 1)
        expected = ["a"] if how == "end" else ["a", "c"]
        await until(lambda: sorted(hanging.cancelled) == expected)
        assert time.monotonic() - asked < lease
        if how == "end":
            hanging.go.set()
            await db.broker.wait(below, timeout=20)
    if how == "delete":
        assert await database.value("SELECT count(*) FROM messages") == 0
        return
    assert [(await db.broker.outcome(r)).status for r in top] == ["cancelled", "cancelled"]
    expected_below = "done" if how == "end" else "cancelled"
    assert (await db.broker.outcome(below)).status == expected_below
    assert await db.store.load("chat") == []
    details = await db.broker.get("chat")
    assert (details.end_reason, details.pending, details.running) == ("enough", 0, False)


async def test_a_late_commit_of_an_ended_session_is_refused(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(turn: Turn) -> str:
        begun.set()
        await go.wait()
        return "too late"

    async with running(db, handler):
        await begun.wait()
        await db.broker.end("chat")
        go.set()
        await until(lambda: db.broker.outcome(receipt))
    assert await db.store.load("chat") == []
    assert (await db.broker.outcome(receipt)).status == "cancelled"


async def test_a_turn_is_given_up_by_our_own_clock_when_the_database_is_out_of_reach(
    db: SessionsDB, database: Database
) -> None:
    """A turn must not go on when its lease could not be renewed."""
    await db.broker.send("chat", "a")
    hanging = Hanging()
    async with SessionsDB(database.url) as own, running(own, hanging, lease_seconds=3.0) as worker:
        await until(lambda: hanging.begun)
        began = time.monotonic()

        # The worker's heartbeats do nothing, as when the network is cut.
        worker._loop._leases._renew = lambda: asyncio.sleep(0)
        await until(lambda: hanging.cancelled)
        assert time.monotonic() - began < 3.0
    assert hanging.cancelled == ["a"]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_heartbeat_that_failed_is_tried_again_before_the_leases_are_given_up(
    db: SessionsDB, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Hanging()
    receipt = await db.broker.send("chat", "hello")
    other = sqlite3.connect(database.path, isolation_level=None)
    with contextlib.closing(other), caplog.at_level(logging.WARNING, "sessionsdb.worker"):
        async with running(db, handler, lease_seconds=6):
            await until(lambda: bool(handler.begun))
            began = time.monotonic()
            other.execute("BEGIN IMMEDIATE")
            await until(lambda: "can't renew leases" in caplog.text)
            other.execute("ROLLBACK")
            await until(lambda: time.monotonic() - began > 6)  # the first lease is over
            handler.go.set()
            outcome = await db.broker.wait(receipt, timeout=30)
    assert (outcome.status, outcome.attempts, handler.cancelled) == ("done", 1, [])


async def test_a_handler_that_goes_on_after_it_was_cancelled_commits_nothing(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stubborn(turn: Turn) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
        return "anyway"

    async with running(db, stubborn, lease_seconds=0.6):
        await begun.wait()
        await db.broker.end("chat")
        await ended.wait()
    assert await db.store.load("chat") == []
    assert (await db.broker.outcome(receipt)).status == "cancelled"


async def test_no_more_sessions_are_claimed_than_there_are_free_slots(db: SessionsDB) -> None:
    for n in range(6):
        await db.broker.register(f"s{n}", channel="test", peer="p")
        await db.broker.send(f"s{n}", f"m{n}")
    hanging = Hanging()
    async with running(db, hanging, concurrency=2) as worker:
        await until(lambda: len(hanging.begun) == 2)
        await claim_again(worker)
        leased = [s.id for s in await db.broker.list() if (await db.broker.get(s.id)).running]
        assert sorted(leased) == ["s0", "s1"]
        hanging.go.set()
        await until(lambda: len(hanging.begun) == 6)
    assert hanging.begun == [f"m{n}" for n in range(6)]


async def test_sessions_take_turns_so_that_a_busy_one_does_not_starve_the_rest(
    db: SessionsDB,
) -> None:
    for text in ("a1", "a2", "a3"):
        await db.broker.send("chat", text)
    await db.broker.register("other", channel="test", peer="p")
    for text in ("b1", "b2"):
        await db.broker.send("other", text)
    seen = []

    async def handler(turn: Turn) -> None:
        seen.append(turn.text)

    await db.worker(handler, concurrency=1).run_until_idle()
    assert seen == ["a1", "b1", "a2", "b2", "a3"]


async def test_a_worker_serves_the_namespaces_it_was_given(db: SessionsDB) -> None:
    others = {name: db.in_namespace(name) for name in ("acme", "umbrella")}
    for other in others.values():
        await other.broker.register("chat", channel="test", peer="p")
        await other.broker.send("chat", f"in {other.namespace}")
    await db.broker.send("chat", "in default")
    seen = []

    async def handler(turn: Turn) -> None:
        seen.append((turn.namespace, turn.text))

    assert await db.worker(handler).run_until_idle() == 1
    assert await db.worker(handler, namespaces=["acme"]).run_until_idle() == 1
    assert await db.worker(handler, namespaces="*").run_until_idle() == 1
    assert seen == [
        ("default", "in default"),
        ("acme", "in acme"),
        ("umbrella", "in umbrella"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"batch": 0},
        {"lease_seconds": 0},
        {"poll_interval": -1},
        {"max_attempts": 0},
        {"turn_timeout": float("inf")},
        {"namespaces": [""]},
        {"namespaces": "acme"},
    ],
)
async def test_options_that_make_no_sense_are_refused(
    db: SessionsDB, wrong: dict[str, Any]
) -> None:
    async def handler(turn: Turn) -> None: ...

    with pytest.raises(InvalidArgument):
        db.worker(handler, **wrong)


async def test_a_fresh_id_at_every_start_that_begins_with_the_workers_name(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> None:
        return None

    worker = db.worker(handler, name="mill", retry=SOON)
    for text in "ab":
        await db.broker.send("chat", text)
        await worker.run_until_idle()
    ids = [row[0] for row in await database.query("SELECT worker FROM inbox ORDER BY position")]
    assert all(id.startswith("mill-") for id in ids)
    assert len(set(ids)) == 2


async def test_a_turn_of_a_deleted_session_commits_nothing_to_the_one_that_came_after(
    db: SessionsDB,
) -> None:
    """The same id, leased to the same worker: only the epoch tells the two leases apart."""
    await db.broker.send("chat", "old")
    [old] = await claim(db)
    await db.store.delete("chat")
    await db.broker.register("chat", channel="test", peer="somebody")
    await db.broker.send("chat", "new")
    [new] = await claim(db)
    with pytest.raises(LeaseLost):
        await commit(db, old, "re old")
    await commit(db, new, "re new")
    assert await db.store.load("chat") == user_and_reply("new", "re new")


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_worker_leaves_the_lease_that_another_was_given_while_it_looked(
    db: SessionsDB, database: Database
) -> None:
    """After an outage a worker gives back leases that it does not know, and knows only its own."""
    receipt = await db.broker.send("chat", "hello")
    runner = open_database_of(db).runner
    options: dict[str, Any] = {
        "namespaces": ["default"],
        "slots": 1,
        "batch": 1,
        "lease_seconds": 30.0,
    }
    await runner.write(partial(mailbox.claim, worker="first", **options))  # the answer is lost
    given: list[Lease] = []

    async def take_over() -> None:
        await expire_leases(database)
        async with SessionsDB(database.url) as other:
            write = open_database_of(other).runner.write
            await write(partial(expiry.reap, namespaces=["default"], max_attempts=5))
            given.extend(await write(partial(mailbox.claim, worker="second", **options)))

    def others_are_faster(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if "owner = " in statement and not given:
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, take_over()).result()

    engine = db.engine.sync_engine
    event.listen(engine, "after_cursor_execute", others_are_faster)
    try:
        ended = await runner.write(partial(lease_ends.release_unknown, worker="first", known=()))
    finally:
        event.remove(engine, "after_cursor_execute", others_are_faster)
    assert ended == 0
    [lease] = given
    held = await runner.read(partial(mailbox.held_fences, worker="second"))
    assert held == {lease.fence}
    assert (await db.broker.outcome(receipt)).attempts == 2
