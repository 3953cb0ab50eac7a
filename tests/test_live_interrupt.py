"""interrupt: what a session works on is stopped, and the session lives on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import LeaseLost, Outcome, Receipt, SessionsDB, Turn, UnknownSession, Worker
from sessionsdb.database import open_database_of
from sessionsdb.operations import lease_ends
from sessionsdb.operations.inbox_types import Fail
from sessionsdb.worker import leases
from tests.support.live import Hanging, stream, transcript
from tests.support.turns import WORKER, answer_next, claim, commit
from tests.support.waiting import until
from tests.support.work import expire_leases, running

HEARTBEATS_ARE_RARE = {"lease_seconds": 3_600, "poll_interval": 3_600}


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


def places(outcomes: list[Outcome]) -> list[tuple[str, int, str]]:
    return [(one.receipt.session_id, one.receipt.position, one.status) for one in outcomes]


# ---- the call ------------------------------------------------------------------------------------


async def test_where_nothing_runs_nothing_is_stopped(db: SessionsDB) -> None:
    assert await db.broker.interrupt("chat") == []
    waiting = await db.broker.send("chat", "a")
    assert await db.broker.interrupt("chat") == []
    assert (await db.broker.outcome(waiting)).status == "pending"
    await db.broker.end("chat")
    assert await db.broker.interrupt("chat") == []


async def test_an_unknown_session_can_not_be_interrupted(db: SessionsDB) -> None:
    for subtree in (False, True):
        with pytest.raises(UnknownSession, match="nobody"):
            await db.broker.interrupt("nobody", subtree=subtree)


async def test_what_runs_is_cancelled_and_what_waits_is_handled(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.send("chat", "a")
    await db.broker.send("chat", "b")
    [lease] = await claim(db)
    await stream(database, "chat", "The ", "ans")
    [outcome] = await db.broker.interrupt("chat")
    assert places([outcome]) == [("chat", 1, "cancelled")]
    assert outcome.reply is not None
    assert (outcome.reply.content, outcome.reply.interrupted) == ("The ans", True)
    with pytest.raises(LeaseLost):
        await commit(db, lease, "too late")
    await answer_next(db, "B")
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "The ans", "b", "B"]


async def test_what_waits_for_another_attempt_is_cancelled(db: SessionsDB) -> None:
    await db.broker.send("chat", "a")
    await db.broker.send("chat", "b")
    [lease] = await claim(db)
    await open_database_of(db).runner.write(
        partial(lease_ends.fail, worker=WORKER, failures=[Fail(lease, "Boom: it broke", 3_600.0)])
    )
    assert places(await db.broker.interrupt("chat")) == [("chat", 1, "cancelled")]
    assert await transcript(db, "chat") == []
    assert (await answer_next(db, "B")).positions == [2]


async def test_a_subtree_is_stopped_as_a_whole_and_nothing_beside_it(db: SessionsDB) -> None:
    for id, parent in (("child", "chat"), ("leaf", "child"), ("beside", None)):
        await db.broker.register(id, channel="cli", peer="ada", parent=parent)
    for id in ("chat", "child", "leaf", "beside"):
        await db.broker.send(id, "a")
    await claim(db, slots=4)
    assert places(await db.broker.interrupt("child", subtree=True)) == [
        ("child", 1, "cancelled"),
        ("leaf", 1, "cancelled"),
    ]
    assert [one.status for one in await db.broker.interrupt("beside", keep_partial=False)] == [
        "cancelled"
    ]
    assert (await db.broker.get("chat")).running


# ---- the handler ---------------------------------------------------------------------------------


STOPS: dict[str, Callable[[SessionsDB, Any], Any]] = {
    "cancel": lambda db, receipt: db.broker.cancel(receipt),
    "interrupt": lambda db, receipt: db.broker.interrupt(receipt.session_id),
    "end": lambda db, receipt: db.broker.end(receipt.session_id),
    "delete": lambda db, receipt: db.store.delete(receipt.session_id),
}


@pytest.mark.parametrize("verb", STOPS)
async def test_a_handler_knows_why_it_is_stopped(db: SessionsDB, verb: str) -> None:
    hanging = Hanging()
    async with running(db, hanging, **HEARTBEATS_ARE_RARE):
        receipt = await db.broker.send("chat", "a")
        turn = await hanging.begun()
        assert turn.stopped_by is None
        await STOPS[verb](db, receipt)
        await until(lambda: hanging.stopped)
    assert hanging.stopped == [("chat", "end" if verb == "delete" else verb)]


async def test_a_handler_of_a_session_that_was_deleted_and_made_again_knows_it(
    db: SessionsDB,
) -> None:
    hanging = Hanging()
    async with running(db, hanging, concurrency=1, **HEARTBEATS_ARE_RARE) as worker:
        worker._loop._leases._look_for_stops = lambda _: asyncio.sleep(0)
        await db.broker.send("chat", "a")
        await hanging.begun()
        await db.store.delete("chat")
        await db.broker.register("chat", channel="cli", peer="ada")
        await db.broker.send("chat", "b")
        await worker._loop._leases._renew()
        await until(lambda: hanging.stopped)
        assert hanging.stopped == [("chat", "end")]


async def test_the_heartbeat_tells_why_a_turn_was_stopped(db: SessionsDB) -> None:
    hanging = Hanging()
    async with running(db, hanging, **HEARTBEATS_ARE_RARE) as worker:
        # As if the hint were lost.
        worker._loop._leases._look_for_stops = lambda _: asyncio.sleep(0)
        await db.broker.send("chat", "a")
        await hanging.begun()
        await db.broker.interrupt("chat")
        await worker._loop._leases._renew()
        await until(lambda: hanging.stopped)
        assert hanging.stopped == [("chat", "interrupt")]


async def test_a_lost_lease_is_no_wish_of_a_caller(db: SessionsDB, database: Database) -> None:
    hanging = Hanging()
    async with running(db, hanging, **HEARTBEATS_ARE_RARE) as worker:
        await db.broker.send("chat", "a")
        await hanging.begun()
        await database.query("UPDATE mailboxes SET epoch = epoch + 1, owner = 'another'")
        await worker._loop._leases._renew()
        await until(lambda: hanging.stopped)
        assert hanging.stopped == [("chat", "lease")]


async def test_a_worker_that_stops_says_nothing(db: SessionsDB) -> None:
    hanging = Hanging()
    async with running(db, hanging):
        await db.broker.send("chat", "a")
        await hanging.begun()
    assert hanging.stopped == [("chat", None)]


async def test_one_message_of_a_batch_is_cancelled_and_the_others_run_again(
    db: SessionsDB,
) -> None:
    hanging = Hanging()
    receipts = [await db.broker.send("chat", text) for text in "abc"]
    async with running(db, hanging, batch=3, **HEARTBEATS_ARE_RARE):
        await hanging.begun()
        await db.broker.cancel(receipts[1])
        again = await hanging.begun(2)
        assert hanging.stopped == [("chat", "cancel")]
        assert [one.content for one in again.messages] == ["a", "c"]
        assert again.attempt == 1
        hanging.release()
        outcomes = [await db.broker.wait(receipt, timeout=20) for receipt in receipts]
    assert [one.status for one in outcomes] == ["done", "cancelled", "done"]


async def test_a_handler_that_swallows_its_stop_commits_nothing(db: SessionsDB) -> None:
    begun = asyncio.Event()
    swallowed = asyncio.Event()

    async def stubborn(turn: Turn) -> str:
        if turn.text == "b":
            return "B"
        turn.send("chat", "staged")
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        return "A"

    async with running(db, stubborn, **HEARTBEATS_ARE_RARE):
        await db.broker.send("chat", "a")
        receipt = await db.broker.send("chat", "b")
        await begun.wait()
        await db.broker.interrupt("chat")
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"
    assert swallowed.is_set()
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "b", "B"]


# ---- the turn after ------------------------------------------------------------------------------


class SlowToStop:
    """A handler whose first turn goes on after its cancellation, until ``let_go`` is set."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.waits: set[str] = {"a"}
        self.hang = asyncio.Event()

    async def __call__(self, turn: Turn) -> str:
        self.begun.append(turn.text)
        try:
            if turn.text in self.waits:
                await self.hang.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.let_go.wait()
            raise
        finally:
            self.ended.append(turn.text)
        return "ok"


def has_lease(worker: Worker, receipt: Receipt) -> bool:
    """Return whether the claim of a message was answered: the worker knows of its lease."""
    loop = worker._loop
    return loop is not None and any(
        receipt.position in held.lease.positions for held in loop._leases
    )


async def test_the_next_turn_waits_for_the_stopped_one_and_then_runs(db: SessionsDB) -> None:
    handler = SlowToStop()
    await db.broker.register("other", channel="cli", peer="ada")
    async with running(db, handler, **HEARTBEATS_ARE_RARE):
        await db.broker.send("chat", "a")
        await until(lambda: handler.begun == ["a"])
        receipt = await db.broker.send("chat", "b", when_busy="interrupt")
        await handler.cancelled.wait()
        await until(lambda: is_running(db, receipt))
        other = await db.broker.send("other", "c")  # another session does not wait
        assert (await db.broker.wait(other, timeout=20)).status == "done"
        assert handler.begun == ["a", "c"]
        handler.let_go.set()
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"
        assert handler.ended == ["c", "a", "b"]


async def is_running(db: SessionsDB, receipt: Any) -> bool:
    return (await db.broker.outcome(receipt)).status == "running"


async def test_the_next_turn_waits_only_so_long(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PREVIOUS_TURN_SECONDS", 0.05)
    handler = SlowToStop()
    async with running(db, handler, **HEARTBEATS_ARE_RARE):
        await db.broker.send("chat", "a")
        await until(lambda: handler.begun == ["a"])
        receipt = await db.broker.send("chat", "b", when_busy="interrupt")
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"
        assert handler.ended == ["b"]
        handler.let_go.set()
        await until(lambda: handler.ended == ["b", "a"])


async def test_a_stopped_handler_keeps_its_slot(db: SessionsDB) -> None:
    handler = SlowToStop()
    await db.broker.register("other", channel="cli", peer="ada")
    async with running(db, handler, concurrency=2, **HEARTBEATS_ARE_RARE):
        await db.broker.send("chat", "a")
        await until(lambda: handler.begun == ["a"])
        receipt = await db.broker.send("chat", "b", when_busy="interrupt")
        await until(lambda: is_running(db, receipt))
        # One slot is the stopped turn's, the other is the one that waits for it.
        other = await db.broker.send("other", "c")
        assert (await db.broker.wait(other, timeout=0.3)).status == "pending"
        handler.let_go.set()
        assert (await db.broker.wait(other, timeout=20)).status == "done"


async def test_a_turn_that_waits_for_a_stopped_one_can_be_stopped_too(db: SessionsDB) -> None:
    handler = SlowToStop()
    async with running(db, handler, **HEARTBEATS_ARE_RARE) as worker:
        await db.broker.send("chat", "a")
        await until(lambda: handler.begun == ["a"])
        second = await db.broker.send("chat", "b", when_busy="interrupt")
        await until(lambda: has_lease(worker, second))
        third = await db.broker.send("chat", "c", when_busy="interrupt")
        assert (await db.broker.outcome(second)).status == "cancelled"
        await until(lambda: has_lease(worker, third))
        assert handler.begun == ["a"]
        handler.let_go.set()
        assert (await db.broker.wait(third, timeout=20)).status == "done"
    assert handler.begun == ["a", "c"]


async def test_a_turn_that_waits_for_a_stopped_one_is_released_by_a_worker_that_stops(
    db: SessionsDB,
) -> None:
    handler = SlowToStop()
    async with running(db, handler, **HEARTBEATS_ARE_RARE) as worker:
        await db.broker.send("chat", "a")
        await until(lambda: handler.begun == ["a"])
        second = await db.broker.send("chat", "b", when_busy="interrupt")
        await until(lambda: has_lease(worker, second))
        stopping = asyncio.create_task(worker.stop(grace=0))
        # The release is over at once if the handler ends by its second cancellation.
        await until(lambda: worker._loop is None or worker._loop._releasing)
        handler.let_go.set()
        await stopping
    outcome = await db.broker.outcome(second)
    assert (outcome.status, outcome.attempts) == ("pending", 0)
    assert handler.begun == ["a"]


async def test_an_expired_turn_of_this_worker_is_waited_for_too(
    db: SessionsDB, database: Database
) -> None:
    handler = SlowToStop()
    async with running(db, handler, lease_seconds=3_600, poll_interval=0.05) as worker:
        worker._loop._leases._look_for_stops = lambda _: asyncio.sleep(0)
        receipt = await db.broker.send("chat", "a")
        await until(lambda: handler.begun == ["a"])
        await expire_leases(database)
        await handler.cancelled.wait()
        assert handler.begun == ["a"]
        handler.waits = set()
        handler.let_go.set()
        outcome = await db.broker.wait(receipt, timeout=20)
    assert (outcome.status, outcome.attempts) == ("done", 2)
