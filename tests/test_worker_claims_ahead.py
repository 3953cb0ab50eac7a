"""A worker with a backlog claims the next session while a turn commits, and runs it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast

import pytest

from devtools.databases import Database
from sessionsdb import Receipt, SessionsDB, Turn, Worker
from sessionsdb.database import open_database_of
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.worker import brake, slots
from sessionsdb.worker.leases import HeldLease, LeaseKeeper
from sessionsdb.worker.slots import LONGEST_PAUSE, Slots
from tests.support.waiting import until
from tests.support.work import running

ON_POSTGRESQL = pytest.mark.parametrize("kind", ["postgresql"])
"""On SQLite one writer commits the turn and claims, so nothing comes between the two."""

REFUSE_RELEASES = {
    "sqlite": (
        "CREATE TRIGGER refuse_releases BEFORE UPDATE ON mailboxes"
        " WHEN old.owner IS NOT NULL AND new.ready_at IS NOT NULL"
        " BEGIN SELECT raise(ABORT, 'refused'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'refused'; END $$",
        "CREATE TRIGGER refuse_releases BEFORE UPDATE ON mailboxes FOR EACH ROW"
        " WHEN (old.owner IS NOT NULL AND new.ready_at IS NOT NULL) EXECUTE FUNCTION refuse()",
    ),
}
"""A trigger that lets the database refuse to end a lease without an attempt."""


@pytest.fixture
async def receipts(db: SessionsDB) -> list[Receipt]:
    """Three sessions with a message each, in the order in which they are claimed."""
    sent = []
    for name in ("first", "second", "third"):
        await db.broker.register(name, channel="test", peer="p")
        sent.append(await db.broker.send(name, f"to {name}"))
    return sent


async def is_running(db: SessionsDB, name: str) -> bool:
    return (await db.broker.get(name)).running


async def not_running(db: SessionsDB, name: str) -> bool:
    return not await is_running(db, name)


class HeldUp:
    """A handler after whose first turn the commit waits for a lock, until ``unlock`` is set."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.begun: list[str] = []
        self.unlock = asyncio.Event()
        self._locker: asyncio.Task[None] | None = None

    async def __call__(self, turn: Turn) -> str:
        self.begun.append(turn.session.id)
        if self._locker is None:
            locked = asyncio.Event()
            self._locker = asyncio.create_task(self._lock(turn.session.id, locked))
            await locked.wait()
        return "done"

    async def _lock(self, name: str, locked: asyncio.Event) -> None:
        connection = await self._database.connect_to_postgres()
        try:
            async with connection.transaction():
                await connection.execute(
                    "SELECT 1 FROM mailboxes WHERE session_id = $1 FOR UPDATE", name
                )
                locked.set()
                await self.unlock.wait()
        finally:
            await connection.close()

    @asynccontextmanager
    async def working(self, db: SessionsDB, *, slots: int = 1) -> AsyncIterator[Worker]:
        try:
            async with running(db, self, concurrency=slots) as worker:
                yield worker
        finally:
            self.unlock.set()
            if self._locker is not None:
                await self._locker


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_commit_and_the_next_claim_are_one_transaction_on_sqlite(
    db: SessionsDB, concurrency: int
) -> None:
    """Two would wait for the disk twice."""
    for number in range(80):
        await db.store.save(f"s{number}", [])
        await db.broker.send(f"s{number}", "hello")
    runner = cast(SqliteRunner, open_database_of(db).runner)
    writer = runner._require_open()
    statements: list[str] = []
    await writer.run(partial(writer.raw.set_trace_callback, statements.append))
    assert await db.worker(_answer, concurrency=concurrency).run_until_idle() == 80
    assert statements.count("COMMIT") < 1.2 * 80 / concurrency + 2


async def _answer(_turn: Turn) -> str:
    return "done"


@ON_POSTGRESQL
async def test_the_next_session_is_claimed_during_a_commit_and_runs_after_it(
    db: SessionsDB, database: Database, receipts: list[Receipt]
) -> None:
    handler = HeldUp(database)
    async with handler.working(db):
        await until(lambda: is_running(db, "second"))
        # One slot: one more lease than turns, and no second turn.
        assert not await is_running(db, "third")
        assert handler.begun == ["first"]
        handler.unlock.set()
        await until(lambda: handler.begun == ["first", "second", "third"])
        outcomes = [await db.broker.wait(receipt, timeout=20) for receipt in receipts]
        assert [one.status for one in outcomes] == ["done"] * 3


@ON_POSTGRESQL
async def test_a_message_that_is_cancelled_while_its_turn_waits_for_a_slot_never_runs(
    db: SessionsDB, database: Database, receipts: list[Receipt]
) -> None:
    handler = HeldUp(database)
    async with handler.working(db):
        await until(lambda: is_running(db, "second"))
        assert (await db.broker.cancel(receipts[1])).status == "cancelled"
        await until(lambda: is_running(db, "third"))  # for the same slot
        handler.unlock.set()
        await until(lambda: handler.begun[-1] == "third")
        assert (await db.broker.wait(receipts[2], timeout=20)).status == "done"
        assert handler.begun == ["first", "third"]


@ON_POSTGRESQL
@pytest.mark.parametrize("grace", [0.0, 20.0])
async def test_a_worker_that_stops_gives_back_the_session_that_it_claimed_ahead(
    db: SessionsDB, database: Database, receipts: list[Receipt], grace: float
) -> None:
    handler = HeldUp(database)
    async with handler.working(db) as worker:
        await until(lambda: is_running(db, "second"))
        stopping = asyncio.create_task(worker.stop(grace))
        await asyncio.sleep(0)  # the stop has begun
        handler.unlock.set()
        await stopping
    assert handler.begun == ["first"]
    assert (await db.broker.outcome(receipts[0])).status == "done"
    given_back = await db.broker.outcome(receipts[1])
    assert (given_back.status, given_back.attempts) == ("pending", 0)


@ON_POSTGRESQL
async def test_a_session_that_waits_too_long_for_its_slot_is_given_to_another_worker(
    db: SessionsDB, database: Database, receipts: list[Receipt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "LONGEST_WAIT", 0.05)
    handler = HeldUp(database)
    async with handler.working(db):
        await until(lambda: is_running(db, "second"))
        await until(lambda: not_running(db, "second"))
        given_back = await db.broker.outcome(receipts[1])
        assert (given_back.status, given_back.attempts) == ("pending", 0)

        async def other(turn: Turn) -> str:
            return "by another"

        async with SessionsDB(database.url) as another, running(another, other):
            outcomes = [await db.broker.wait(one, timeout=20) for one in receipts[1:]]
        assert [one.status for one in outcomes] == ["done", "done"]
        assert handler.begun == ["first"]
        handler.unlock.set()
        assert (await db.broker.wait(receipts[0], timeout=20)).status == "done"


@ON_POSTGRESQL
async def test_the_brake_gives_back_the_session_that_waits_for_a_slot(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "LONGEST_WAIT", 1000.0)
    monkeypatch.setattr(brake, "FAILURES", 2)
    monkeypatch.setattr(brake, "SESSIONS", 2)
    monkeypatch.setattr(brake, "FIRST_PAUSE_SECONDS", 60.0)  # no turn is tried
    names = ("first", "bad 1", "bad 2", "third")
    for name in names:
        await db.broker.register(name, channel="test", peer="p")
    sent = [await db.broker.send(name, "hello") for name in names]
    waiting: list[str] = []

    class Broken(HeldUp):
        async def __call__(self, turn: Turn) -> str:
            if turn.session.id == "first":
                return await super().__call__(turn)
            self.begun.append(turn.session.id)
            behind = names[names.index(turn.session.id) + 1]
            await until(lambda: is_running(db, behind))
            waiting.append(behind)  # for the slot
            raise RuntimeError("broken")

    handler = Broken(database)
    async with handler.working(db, slots=2):
        await until(lambda: waiting == ["bad 2", "third"])
        await until(lambda: not_running(db, "third"))
        assert await is_running(db, "first")  # its commit waits for the lock
        given_back = await db.broker.outcome(sent[-1])
        assert (given_back.status, given_back.attempts) == ("pending", 0)
        assert sorted(handler.begun) == ["bad 1", "bad 2", "first"]
        handler.unlock.set()
        assert (await db.broker.wait(sent[0], timeout=20)).status == "done"


@ON_POSTGRESQL
async def test_a_turn_whose_task_is_cancelled_from_elsewhere_before_it_begins_runs_later(
    db: SessionsDB, database: Database, receipts: list[Receipt]
) -> None:
    handler = HeldUp(database)
    async with handler.working(db):
        [task] = await until(
            lambda: [one for one in asyncio.all_tasks() if "session second" in one.get_name()]
        )
        task.cancel()
        await asyncio.wait((task,))
        handler.unlock.set()
        outcomes = [await db.broker.wait(receipt, timeout=20) for receipt in receipts]
        assert [(one.status, one.attempts) for one in outcomes] == [("done", 1)] * 3
        assert sorted(handler.begun) == ["first", "second", "third"]


async def test_a_turn_whose_task_never_gets_to_run_is_given_back(
    db: SessionsDB, receipts: list[Receipt]
) -> None:
    with cancelled_at_birth("TurnRunner.run") as cancelled:
        async with running(db, done):
            outcomes = [await db.broker.wait(receipt, timeout=20) for receipt in receipts]
    assert cancelled == ["TurnRunner.run"]
    assert [(one.status, one.attempts) for one in outcomes] == [("done", 1)] * 3


async def test_a_give_back_is_tried_again_while_the_database_fails(
    db: SessionsDB,
    database: Database,
    receipts: list[Receipt],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for statement in REFUSE_RELEASES[database.kind]:
        await database.query(statement)
    with cancelled_at_birth("TurnRunner.run"):
        async with running(db, done, lease_seconds=60.0):
            await until(lambda: "can't give a session back" in caplog.text)
            table = " ON mailboxes" if database.kind == "postgresql" else ""
            await database.query(f"DROP TRIGGER refuse_releases{table}")
            outcomes = [await db.broker.wait(receipt, timeout=20) for receipt in receipts]
    assert [(one.status, one.attempts) for one in outcomes] == [("done", 1)] * 3


async def test_a_give_back_that_fails_for_good_frees_its_slot_and_lets_the_lease_run_out(
    db: SessionsDB, database: Database, receipts: list[Receipt]
) -> None:
    for statement in REFUSE_RELEASES[database.kind]:
        await database.query(statement)
    with cancelled_at_birth("TurnRunner.run"):
        async with running(db, done, lease_seconds=1.0, concurrency=1):
            others = [await db.broker.wait(receipt, timeout=20) for receipt in receipts[1:]]
            assert [one.status for one in others] == ["done"] * 2
            assert (await db.broker.outcome(receipts[0])).status == "running"
            table = " ON mailboxes" if database.kind == "postgresql" else ""
            await database.query(f"DROP TRIGGER refuse_releases{table}")
            first = await db.broker.wait(receipts[0], timeout=20)
    assert (first.status, first.attempts) == ("done", 2)


async def test_a_give_back_that_is_cancelled_too_lets_the_lease_run_out(
    db: SessionsDB, receipts: list[Receipt]
) -> None:
    names = ["TurnRunner.run", "Claims.give_back"]
    with cancelled_at_birth(*names, "Claims.give_back") as cancelled:
        async with running(db, done, lease_seconds=1.0):
            outcomes = [await db.broker.wait(receipt, timeout=20) for receipt in receipts]
    assert cancelled == names
    assert [(one.status, one.attempts) for one in outcomes] == [
        ("done", 2),  # its lease was left to expire, which counts the attempt
        ("done", 1),
        ("done", 1),
    ]


async def done(turn: Turn) -> str:
    return "done"


@contextmanager
def cancelled_at_birth(*names: str) -> Iterator[list[str]]:
    """Cancel a new task of each of these coroutines once, as a supervisor of tasks may do.

    Yields the names of those that were cancelled.
    """
    left = list(names)
    cancelled: list[str] = []

    def create_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        task = asyncio.Task(work, loop=loop, **options)
        if work.__qualname__ in left:
            left.remove(work.__qualname__)
            cancelled.append(work.__qualname__)
            task.cancel()
        return task

    loop = asyncio.get_running_loop()
    loop.set_task_factory(create_task)
    try:
        yield cancelled
    finally:
        loop.set_task_factory(None)


async def test_a_turn_sees_the_commits_of_all_turns_before_it_in_its_slot(
    db: SessionsDB, receipts: list[Receipt]
) -> None:
    for receipt in receipts:
        for number in range(10):
            await db.broker.send(receipt.session_id, f"{number}")
    told = []
    unfinished = []

    async def handler(turn: Turn) -> str:
        running_now = [name for name in ("first", "second", "third") if await is_running(db, name)]
        texts = [one.content for name in ("first", "second", "third")
                 for one in await db.broker.history(name, 200)]  # fmt: skip
        unfinished.extend(reply for reply in told if reply not in texts)
        assert turn.session.id in running_now
        told.append(f"reply {len(told)}")
        return told[-1]

    assert await db.worker(handler, concurrency=1).run_until_idle() == 33
    assert unfinished == []


# ---- when it pays --------------------------------------------------------------------------------


class Held:
    """Slots, and leases whose turns are not run."""

    def __init__(self, count: int) -> None:
        self.leases = LeaseKeeper(cast(Any, None), "worker", 30.0)
        self.slots = Slots(count, self.leases)

    def give(self, key: str) -> HeldLease:
        held = HeldLease.__new__(HeldLease)
        held.key, held.slot = ("default", key), None
        self.slots.take(held)
        self.leases.held[held.key] = held
        return held

    def end(self, held: HeldLease) -> None:
        self.leases.remove(held)
        self.slots.release(held)


def waits(held: HeldLease) -> bool:
    return held.slot is not None and not held.slot.done()


def may_begin(held: HeldLease) -> bool:
    assert held.slot is not None
    return held.slot.result()


async def test_turns_get_their_slots_in_the_order_of_their_claims() -> None:
    now = Held(2)
    now.slots.count_claim(1, 1, ahead=False)
    first, second = now.give("first"), now.give("second")
    assert now.slots.free() == 0
    assert now.slots.offer(first)
    assert now.slots.free() == 1
    third = now.give("third")
    assert now.slots.offer(second)
    fourth = now.give("fourth")
    assert [waits(one) for one in (first, second, third, fourth)] == [False, False, True, True]
    assert now.slots.free() == 0
    now.end(second)
    assert [waits(third), waits(fourth)] == [False, True]
    now.end(third)
    assert (waits(fourth), now.slots.free()) == (False, 1)


async def test_a_turn_that_is_stopped_while_it_waits_frees_the_slot_of_no_other() -> None:
    now = Held(2)
    now.slots.count_claim(1, 1, ahead=False)
    first, second = now.give("first"), now.give("second")
    assert now.slots.offer(first)
    assert now.slots.offer(second)
    third, fourth = now.give("third"), now.give("fourth")
    now.end(fourth)
    assert waits(third)
    now.end(first)
    assert not waits(third)


async def test_given_back_turns_do_not_begin_and_nothing_more_is_claimed_for_their_slots() -> None:
    now = Held(2)
    now.slots.count_claim(1, 1, ahead=False)
    first, second = now.give("first"), now.give("second")
    assert now.slots.offer(first)
    assert now.slots.offer(second)
    third = now.give("third")
    now.slots.give_back_all()
    now.end(third)
    assert may_begin(third) is False
    assert now.slots.free() == 1
    fourth = now.give("fourth")
    now.slots.close()
    now.end(fourth)
    assert may_begin(fourth) is False
    assert not now.slots.offer(now.give("fifth"))


async def test_after_a_claim_ahead_in_vain_no_slot_is_left_on_offer() -> None:
    now = Held(2)
    now.slots.count_claim(1, 1, ahead=False)
    first, second = now.give("first"), now.give("second")
    assert now.slots.offer(first)
    assert now.slots.offer(second)
    now.give("third")
    assert now.slots.is_ahead(1)
    now.slots.count_claim(1, 0, ahead=True)
    assert now.slots.free() == 0
    now.end(first)  # the third begins
    now.end(second)
    assert now.slots.free() == 1
    assert not now.slots.is_ahead(1)


def test_without_a_backlog_no_slot_is_offered() -> None:
    now = Held(4)
    held = now.give("one")
    assert not now.slots.offer(held)
    now.slots.count_claim(4, 3, ahead=False)
    assert not now.slots.offer(held)
    now.slots.count_claim(1, 1, ahead=False)
    assert now.slots.offer(held)


def test_claims_ahead_that_find_nothing_become_rare() -> None:
    now = Held(1)
    held = now.give("one")
    pauses = []
    for _ in range(9):
        now.slots.count_claim(1, 0, ahead=True)
        full = 0
        while not now.slots.offer(held):
            full += 1
            now.slots.count_claim(1, 1, ahead=False)
        pauses.append(full)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert max(pauses) == LONGEST_PAUSE
    now.slots.count_claim(1, 1, ahead=True)
    now.slots.count_claim(1, 0, ahead=True)
    now.slots.count_claim(1, 1, ahead=False)
    assert now.slots.offer(held)
