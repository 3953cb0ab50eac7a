"""outcome, wait, and spawn that waits for the first reply."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    Receipt,
    SessionsDB,
    SpawnRequest,
    Turn,
    UnknownReceipt,
    UnknownSession,
    operations,
)
from sessionsdb.database import open_database_of
from sessionsdb.runtime import outcome_waiter
from tests.support.pools import checked_out
from tests.support.turns import answer_next, bury_next, claim, commit, waits_under_way
from tests.support.waiting import until


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


@contextmanager
def counted_reads(db: SessionsDB) -> Iterator[list[str]]:
    """Collect the statements that the reads of a handle execute."""
    statements: list[str] = []
    if db.engine.dialect.name == "postgresql":
        engines = [db.engine.sync_engine]
    else:
        engines = [lane.connection.engine for lane in open_database_of(db).runner._connections]

    def count(_c: object, _k: object, statement: str, *_: object) -> None:
        statements.append(statement)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", count)


async def test_an_outcome_follows_its_message_to_the_end(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    pending = await db.broker.outcome(receipt)
    assert (pending.status, pending.attempts, pending.reply) == ("pending", 0, None)
    assert (pending.receipt, pending.final, pending.finished_at) == (receipt, False, None)
    [lease] = await claim(db)
    running = await db.broker.outcome(receipt)
    assert (running.status, running.attempts, running.final) == ("running", 1, False)
    await commit(db, lease, "thinking", "hi there")
    done = await db.broker.outcome(receipt)
    assert (done.status, done.attempts, done.error) == ("done", 1, None)
    assert done.reply is not None
    assert (done.reply.role, done.reply.content) == ("assistant", "hi there")
    assert done.reply == (await db.broker.history("chat"))[-1]
    assert done.finished_at is not None
    assert done.finished_at >= done.enqueued_at == pending.enqueued_at


async def test_a_turn_without_a_reply_is_done_without_one(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    await answer_next(db)
    outcome = await db.broker.wait(receipt, timeout=5)
    assert (outcome.status, outcome.reply) == ("done", None)


@pytest.mark.parametrize("verb", ["outcome", "wait", "requeue", "cancel"])
async def test_an_unknown_receipt_is_refused(db: SessionsDB, verb: str) -> None:
    for id, position in [("chat", 1), ("nobody", 1), ("chat", 0), ("chat", 10**30)]:
        with pytest.raises(UnknownReceipt, match=f"{id}"):
            await getattr(db.broker, verb)(Receipt(session_id=id, position=position))
    for position in (2**63, 10**5_000):
        with pytest.raises(UnknownReceipt) as refused:
            await getattr(db.broker, verb)(Receipt(session_id="chat", position=position))
        assert refused.value.position == position
        assert ("9223372036854775808" if position == 2**63 else "digits") in str(refused.value)


async def test_wait_gives_the_pending_outcome_at_the_timeout(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    for timeout in (0, 0.05):
        outcome = await db.broker.wait(receipt, timeout=timeout)
        assert (outcome.status, outcome.receipt) == ("pending", receipt)
    assert (await db.broker.get("chat")).pending == 1
    assert waits_under_way(db) == 0


async def test_a_timeout_that_is_no_time_is_refused(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    timeout: Any
    for timeout in (-1, math.nan, "60", None, True):
        with pytest.raises(InvalidArgument, match="timeout"):
            await db.broker.wait(receipt, timeout=timeout)


@pytest.mark.parametrize("timeout", [30, math.inf, 10**400], ids=["30", "inf", "huge"])
async def test_wait_returns_when_another_handle_commits_the_answer(
    database: Database, db: SessionsDB, timeout: float
) -> None:
    receipt = await db.broker.send("chat", "hello")
    wait = asyncio.create_task(db.broker.wait(receipt, timeout=timeout))
    await until(lambda: waits_under_way(db) == 1)
    async with SessionsDB(database.url) as other:
        await answer_next(other, "hi there")
    outcome = await asyncio.wait_for(wait, 10)
    assert outcome.status == "done"
    assert outcome.reply is not None
    assert outcome.reply.content == "hi there"
    assert waits_under_way(db) == 0


async def test_wait_on_a_finished_message_returns_at_once(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    await answer_next(db, "hi")
    assert (await asyncio.wait_for(db.broker.wait(receipt, timeout=600), 5)).status == "done"


async def test_wait_ends_when_the_message_dies_is_cancelled_or_deleted(db: SessionsDB) -> None:
    dying = await db.broker.send("chat", "hello")
    wait = asyncio.create_task(db.broker.wait(dying))
    await until(lambda: waits_under_way(db) == 1)
    await bury_next(db, "Boom: it broke")
    outcome = await asyncio.wait_for(wait, 10)
    assert (outcome.status, outcome.error, outcome.reply) == ("dead", "Boom: it broke", None)

    cancelled = await db.broker.send("chat", "hello")
    wait = asyncio.create_task(db.broker.wait(cancelled))
    await until(lambda: waits_under_way(db) == 1)
    await db.broker.end("chat")
    assert (await asyncio.wait_for(wait, 10)).status == "cancelled"

    await db.broker.register("short", channel="cli", peer="ada")
    gone = await db.broker.send("short", "hello")
    wait = asyncio.create_task(db.broker.wait(gone))
    await until(lambda: waits_under_way(db) == 1)
    await db.store.delete("short")
    with pytest.raises(UnknownReceipt, match="short"):
        await asyncio.wait_for(wait, 10)


async def test_a_look_for_many_messages_finds_the_finished_and_the_unknown_ones(
    db: SessionsDB,
) -> None:
    """Thousands of waits for messages that are not finished cost no rows."""
    done = await db.broker.send("chat", "first")
    await answer_next(db, "hi")
    dead = await db.broker.send("chat", "second")
    await bury_next(db, "Boom: it broke")
    cancelled, pending = [await db.broker.send("chat", text) for text in ("third", "fourth")]
    await db.broker.cancel(cancelled)
    keys = {
        name: (db.namespace, "chat", position)
        for name, position in (
            ("done", done.position),
            ("dead", dead.position),
            ("cancelled", cancelled.position),
            ("pending", pending.position),
            ("unknown", 99),
        )
    }
    found = await open_database_of(db).read(
        partial(operations.outcomes.finished, receipts=[*keys.values()])
    )
    assert found == {
        keys["done"]: await db.broker.outcome(done),
        keys["dead"]: await db.broker.outcome(dead),
        keys["cancelled"]: await db.broker.outcome(cancelled),
        keys["unknown"]: None,
    }


async def test_a_cancelled_wait_cancels_only_itself(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    cancelled = asyncio.create_task(db.broker.wait(receipt))
    patient = asyncio.create_task(db.broker.wait(receipt))
    await until(lambda: waits_under_way(db) == 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert waits_under_way(db) == 1
    assert (await db.broker.outcome(receipt)).status == "pending"
    await answer_next(db, "still here")
    assert (await asyncio.wait_for(patient, 10)).status == "done"


async def test_no_connection_is_held_while_waiting(db: SessionsDB) -> None:
    receipts = [await db.broker.send("chat", str(n)) for n in range(30)]
    before = checked_out(db.engine)
    waits = [asyncio.create_task(db.broker.wait(receipt)) for receipt in receipts]
    await until(lambda: waits_under_way(db) == 30)
    # One connection listens or watches for all waiters, and a read runs at the same time.
    await until(lambda: checked_out(db.engine) <= before + 1)
    for _ in receipts:
        await answer_next(db, "done")
    assert {(await wait).status for wait in waits} == {"done"}


async def test_a_wait_looks_at_its_message_at_the_start_and_when_it_is_finished(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes tell of their commits at any time, so the file of SQLite is in memory."""
    monkeypatch.setattr(outcome_waiter, "POLL_SECONDS", 60.0)
    looks = 0
    finished = operations.outcomes.finished

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        return finished(*arguments, **named)

    monkeypatch.setattr(operations.outcomes, "finished", counted)
    url = database.url if database.kind == "postgresql" else "sqlite:///:memory:"
    async with SessionsDB(url) as db, open_database_of(db).notifier.subscribe("done") as done:
        await db.broker.register("chat", channel="cli", peer="ada", exist_ok=True)
        if database.kind == "postgresql":
            assert await done.wait(20), "it listens from now on"
        receipt = await db.broker.send("chat", "hello")
        wait = asyncio.create_task(db.broker.wait(receipt, timeout=60))
        await until(lambda: waits_under_way(db) == 1)
        assert looks == 1
        await answer_next(db, "hi")
        open_database_of(db).notifier.notify("done")
        assert (await asyncio.wait_for(wait, 10)).status == "done"
        assert looks == 2


async def test_a_thousand_waiters_cost_few_queries(
    database: Database, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_waiter, "POLL_SECONDS", 60.0)
    receipts = await asyncio.gather(*(db.broker.send("chat", str(n)) for n in range(1_000)))
    with counted_reads(db) as statements:
        tasks = [asyncio.create_task(db.broker.wait(r, timeout=60)) for r in receipts]
        await until(lambda: waits_under_way(db) == 1_000)
        assert len([s for s in statements if "inbox" in s]) <= 10
        await database.query("UPDATE inbox SET status = 'done' WHERE position <= 500")
        open_database_of(db).notifier.notify("done")
        await until(lambda: waits_under_way(db) == 500)
        assert len([s for s in statements if "inbox" in s]) <= 20
        await database.query("UPDATE inbox SET status = 'done'")
        open_database_of(db).notifier.notify("done")
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert len([s for s in statements if "inbox" in s]) <= 40
    assert [o.receipt.position for o in outcomes] == [r.position for r in receipts]
    assert {o.status for o in outcomes} == {"done"}


async def test_spawn_waits_for_the_first_reply(database: Database, db: SessionsDB) -> None:
    request = SpawnRequest(prompt="go", wait_for_first_reply=True, wait_timeout_secs=30)
    spawn = asyncio.create_task(db.broker.spawn("chat", request))
    await until(lambda: waits_under_way(db) == 1)
    async with SessionsDB(database.url) as other:
        lease = await answer_next(other, "first", "last of the first turn")
    spawned = await asyncio.wait_for(spawn, 10)
    assert spawned.id == lease.session.id
    assert spawned.first_reply is not None
    assert spawned.first_reply.content == "last of the first turn"


async def test_spawn_that_waited_in_vain_leaves_the_child_alive(db: SessionsDB) -> None:
    for seconds in (0, 0.05):
        spawned = await db.broker.spawn(
            "chat",
            SpawnRequest(prompt="go", wait_for_first_reply=True, wait_timeout_secs=seconds),
        )
        assert spawned.first_reply is None
        assert (await db.broker.get(spawned.id)).pending == 1
        await answer_next(db, "late")
        assert [m.content for m in await db.broker.history(spawned.id)] == ["go", "late"]


async def test_a_spawn_whose_child_is_deleted_while_it_waits_returns_its_id(
    db: SessionsDB,
) -> None:
    request = SpawnRequest(prompt="go", wait_for_first_reply=True, wait_timeout_secs=30)
    spawn = asyncio.create_task(db.broker.spawn("chat", request))
    await until(lambda: waits_under_way(db) == 1)
    [child] = await db.broker.list(parent="chat")
    await db.store.delete(child.id)
    spawned = await asyncio.wait_for(spawn, 20)
    assert (spawned.id, spawned.first_reply) == (child.id, None)


async def test_a_spawn_cancelled_while_it_waits_leaves_the_child_alive(db: SessionsDB) -> None:
    request = SpawnRequest(prompt="go", wait_for_first_reply=True)
    spawn = asyncio.create_task(db.broker.spawn("chat", request))
    await until(lambda: waits_under_way(db) == 1)
    spawn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawn
    [child] = await db.broker.list(parent="chat")
    assert (await db.broker.get(child.id)).pending == 1
    await answer_next(db, "done")


async def test_waiters_are_told_when_the_handle_is_closed(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        receipt = await db.broker.send("chat", "hello")
        wait = asyncio.create_task(db.broker.wait(receipt))
        await until(lambda: waits_under_way(db) == 1)
    with pytest.raises(Exception, match="closed"):
        await asyncio.wait_for(wait, 10)


async def test_dead_letters_of_an_unknown_session_are_refused(db: SessionsDB) -> None:
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.dead_letters("nobody")


async def test_a_finished_message_costs_a_look_for_the_messages_of_its_session(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred callers wait in other sessions. The file of SQLite is in memory, because every
    commit to a file makes the handle look for all messages: it may be of another process."""
    monkeypatch.setattr(outcome_waiter, "POLL_SECONDS", 60.0)
    looked_for: list[int] = []
    finished = operations.outcomes.finished

    def counted(*arguments: Any, **named: Any) -> Any:
        looked_for.append(len(named["receipts"]))
        return finished(*arguments, **named)

    async def echo(turn: Turn) -> str:
        return turn.text

    url = database.url if database.kind == "postgresql" else "sqlite:///:memory:"
    async with (
        SessionsDB(url, namespace="waiting") as db,
        open_database_of(db).notifier.subscribe("pieces") as listening,
    ):
        if database.kind == "postgresql":
            assert await listening.wait(20), "other processes may have finished anything before"
        served = db.in_namespace("served")
        receipts = []
        for n in range(200):
            await db.broker.register(f"idle-{n}", channel="cli", peer="ada")
            receipts.append(await db.broker.send(f"idle-{n}", "nobody answers"))
        await served.broker.register("busy", channel="cli", peer="ada")
        worker = served.worker(echo)
        run = asyncio.create_task(worker.run())
        waits = [asyncio.create_task(db.broker.wait(r, timeout=60)) for r in receipts]
        await until(lambda: waits_under_way(db) == 200)
        monkeypatch.setattr(operations.outcomes, "finished", counted)
        for n in range(10):
            receipt = await served.broker.send("busy", str(n))
            outcome = await asyncio.wait_for(served.broker.wait(receipt, timeout=60), 20)
            assert outcome.reply is not None
            assert outcome.reply.content == str(n)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await worker.stop()
        await run
    assert sum(looked_for) < 200, "each turn looked for its own message alone, a few times"
