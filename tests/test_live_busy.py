"""send(when_busy=…): a session that is busy gets the message later, now, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    IdempotencyConflict,
    InboxFull,
    InvalidArgument,
    LeaseLost,
    Limits,
    Receipt,
    SessionBusy,
    SessionEnded,
    SessionsDB,
    Turn,
    UnknownSession,
)
from tests.support.live import Hanging, stream, transcript
from tests.support.turns import answer_next, bury_next, claim, commit
from tests.support.waiting import until
from tests.support.work import running


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


async def rows(database: Database) -> Any:
    return [await database.query(f"SELECT * FROM {t}") for t in ("inbox", "mailboxes", "sessions")]


# ---- reject --------------------------------------------------------------------------------------


async def test_a_free_session_takes_a_message_that_may_be_rejected(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a", when_busy="reject")
    assert receipt.position == 1
    await answer_next(db, "A")
    await db.broker.send("chat", "b", when_busy="reject")
    await bury_next(db)
    assert (await db.broker.send("chat", "c", when_busy="reject")).position == 3


@pytest.mark.parametrize("state", ["waits", "runs"])
async def test_a_busy_session_rejects_and_nothing_is_written(
    db: SessionsDB, database: Database, state: str
) -> None:
    await db.broker.send("chat", "a")
    if state == "runs":
        await claim(db)
    before = await rows(database)
    with pytest.raises(SessionBusy, match="session chat is busy: 1 of its messages") as caught:
        await db.broker.send("chat", "b", when_busy="reject")
    assert (caught.value.session_id, caught.value.pending) == ("chat", 1)
    assert await rows(database) == before


async def test_of_many_sends_that_may_be_rejected_one_is_queued(
    db: SessionsDB, database: Database
) -> None:
    async with SessionsDB(database.url) as other:
        answers = await asyncio.gather(
            *(one.broker.send("chat", "a", when_busy="reject") for one in (db, other) * 5),
            return_exceptions=True,
        )
    assert [type(one) for one in answers].count(Receipt) == 1
    assert [type(one) for one in answers].count(SessionBusy) == 9


# ---- interrupt -----------------------------------------------------------------------------------


async def test_an_interrupting_message_stops_what_runs_and_is_next(
    db: SessionsDB, database: Database
) -> None:
    first = await db.broker.send("chat", "a")
    [lease] = await claim(db)
    await stream(database, "chat", "The ans")
    second = await db.broker.send("chat", "b", when_busy="interrupt")
    assert (await db.broker.outcome(first)).status == "cancelled"
    with pytest.raises(LeaseLost):
        await commit(db, lease, "too late")
    assert (await answer_next(db, "B")).positions == [second.position]
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "The ans", "b", "B"]


async def test_an_interrupting_message_stands_behind_those_that_wait(db: SessionsDB) -> None:
    await db.broker.send("chat", "a")
    await claim(db)
    await db.broker.send("chat", "b")
    receipt = await db.broker.send("chat", "c", when_busy="interrupt")
    assert receipt.position == 3
    await answer_next(db, "B")
    await answer_next(db, "C")
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "b", "B", "c", "C"]


async def test_an_interrupting_message_to_a_free_session_is_a_plain_one(db: SessionsDB) -> None:
    await db.broker.send("chat", "a", when_busy="interrupt")
    await answer_next(db, "A")
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "A"]


async def test_a_running_handler_is_cancelled_and_the_message_is_answered(db: SessionsDB) -> None:
    hanging = Hanging()
    async with running(db, hanging, lease_seconds=3_600, poll_interval=3_600):
        await db.broker.send("chat", "a")
        await hanging.begun()
        receipt = await db.broker.send("chat", "b", when_busy="interrupt")
        await hanging.begun(2)
        assert [id for id, _ in hanging.stopped] == ["chat"]
        hanging.release()
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"


async def test_a_full_inbox_stops_nothing(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=2)) as db:
        first = await db.broker.send("chat", "a")
        await db.broker.send("chat", "b")
        await claim(db)
        # The stopped message makes room.
        await db.broker.send("chat", "c", when_busy="interrupt")
        assert (await db.broker.outcome(first)).status == "cancelled"
        await db.broker.register("full", channel="cli", peer="ada")
        waiting = [await db.broker.send("full", text) for text in "ab"]
        with pytest.raises(InboxFull):
            await db.broker.send("full", "c", when_busy="interrupt")
        for receipt in waiting:
            assert (await db.broker.outcome(receipt)).status == "pending"


async def test_a_message_that_is_refused_stops_nothing(db: SessionsDB) -> None:
    first = await db.broker.send("chat", "a", idempotency_key="k")
    await claim(db)
    with pytest.raises(IdempotencyConflict):
        await db.broker.send("chat", "b", when_busy="interrupt", idempotency_key="k")
    assert (await db.broker.outcome(first)).status == "running"


@pytest.mark.parametrize("how", ["interrupt", "reject"])
async def test_an_unknown_and_an_ended_session_are_told(db: SessionsDB, how: Any) -> None:
    with pytest.raises(UnknownSession):
        await db.broker.send("nobody", "a", when_busy=how)
    await db.broker.end("chat")
    with pytest.raises(SessionEnded):
        await db.broker.send("chat", "a", when_busy=how)


# ---- idempotency keys, transactions, arguments ---------------------------------------------------


@pytest.mark.parametrize("how", ["interrupt", "reject"])
async def test_a_known_key_returns_the_first_receipt_and_stops_nothing(
    db: SessionsDB, how: Any
) -> None:
    first = await db.broker.send("chat", "a", idempotency_key="k")
    await claim(db)
    again = await db.broker.send("chat", "a", when_busy=how, idempotency_key="k")
    assert (again.position, again.duplicate) == (first.position, True)
    assert (await db.broker.outcome(first)).status == "running"
    new = await db.broker.send("chat", "b", idempotency_key="other")
    assert (await db.broker.send("chat", "b", when_busy=how, idempotency_key="other")) == (
        new.model_copy(update={"duplicate": True})
    )


@pytest.mark.parametrize("commits", [True, False])
async def test_a_stop_and_its_message_belong_to_the_callers_transaction(
    db: SessionsDB, commits: bool
) -> None:
    first = await db.broker.send("chat", "a")
    [lease] = await claim(db)
    async with db.engine.connect() as connection:
        await db.broker.send("chat", "b", when_busy="interrupt", connection=connection)
        await (connection.commit() if commits else connection.rollback())
    assert (await db.broker.outcome(first)).status == ("cancelled" if commits else "running")
    assert (await db.broker.get("chat")).pending == (1 if commits else 0)
    if not commits:
        await commit(db, lease, "A")


async def test_a_rejected_message_leaves_the_callers_transaction_usable(db: SessionsDB) -> None:
    await db.broker.send("chat", "a")
    await db.broker.register("other", channel="cli", peer="ada")
    async with db.engine.begin() as connection:
        with pytest.raises(SessionBusy):
            await db.broker.send("chat", "b", when_busy="reject", connection=connection)
        await db.broker.send("other", "b", when_busy="reject", connection=connection)
    assert (await db.broker.get("other")).pending == 1
    assert (await db.broker.get("chat")).pending == 1


async def test_an_interrupt_in_a_callers_transaction_reaches_the_handler(db: SessionsDB) -> None:
    hanging = Hanging()
    async with running(db, hanging, lease_seconds=3_600, poll_interval=3_600):
        await db.broker.send("chat", "a")
        await hanging.begun()
        async with db.engine.begin() as connection:
            await db.broker.send("chat", "b", when_busy="interrupt", connection=connection)
        await until(lambda: hanging.stopped)


@pytest.mark.parametrize("wrong", ["later", None, 5, ["queue"]])
async def test_another_word_is_refused(db: SessionsDB, wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="when_busy"):
        await db.broker.send("chat", "a", when_busy=wrong)
    assert (await db.broker.get("chat")).pending == 0


# ---- from inside a handler -----------------------------------------------------------------------


async def test_a_session_can_not_interrupt_itself(db: SessionsDB) -> None:
    with pytest.raises(InvalidArgument, match="session chat can't interrupt itself"):
        await db.broker.send("chat", "a", sender="chat", when_busy="interrupt")


async def test_a_handler_can_interrupt_other_sessions_and_not_its_own(db: SessionsDB) -> None:
    await db.broker.register("other", channel="cli", peer="ada")
    left_behind: list[asyncio.Task[Any]] = []
    go_on = asyncio.Event()

    async def interrupt_later() -> None:
        await go_on.wait()
        await db.broker.send("chat", "later", when_busy="interrupt")

    async def handler(turn: Turn) -> str | None:
        if turn.session.id == "other":
            return None
        if turn.text == "go":
            await db.broker.send("other", "b", when_busy="interrupt")
            for broker in (turn.broker, db.broker):
                with pytest.raises(InvalidArgument, match="can't interrupt itself"):
                    await broker.send("chat", "c", when_busy="interrupt")
            with pytest.raises(InvalidArgument, match="can't interrupt itself"):
                await asyncio.create_task(db.broker.send("chat", "c", when_busy="interrupt"))
            left_behind.append(asyncio.create_task(interrupt_later()))
        return "ok"

    await db.broker.send("chat", "go")
    await db.worker(handler, max_attempts=1).run_until_idle()
    assert [text for _, text, _ in await transcript(db, "chat")] == ["go", "ok"]
    # The turn is over, so a task that it left behind is not inside of it.
    go_on.set()
    await left_behind[0]
    assert (await db.broker.get("chat")).pending == 1


async def test_a_handler_can_not_stop_its_own_turn(db: SessionsDB) -> None:
    await db.broker.register("other", channel="cli", peer="ada")
    waiting: list[Receipt] = []

    async def handler(turn: Turn) -> str:
        if turn.session.id == "chat":
            joined = await db.broker.send("chat", "b")
            await turn.take_incoming()
            waiting.append(await db.broker.send("chat", "c"))
            for broker in (turn.broker, db.broker):
                for receipt in (turn.receipts[0], joined):
                    with pytest.raises(InvalidArgument, match="session chat can't stop its own"):
                        await broker.cancel(receipt)
                for subtree in (False, True):
                    with pytest.raises(InvalidArgument, match="session chat can't stop its own"):
                        await broker.interrupt("chat", subtree=subtree)
            # What waits behind the turn may be cancelled, and other sessions may be stopped.
            assert (await db.broker.cancel(waiting[0])).status == "cancelled"
            others = await db.broker.send("other", "a")
            assert (await db.broker.cancel(others)).status == "cancelled"
            assert await db.broker.interrupt("other") == []
        return "ok"

    receipt = await db.broker.send("chat", "a")
    await db.worker(handler, concurrency=1, max_attempts=1).run_until_idle()
    assert (await db.broker.outcome(receipt)).status == "done"
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "b", "ok"]


async def test_a_handler_can_not_rewrite_the_transcript_of_its_own_session(db: SessionsDB) -> None:
    before = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "Old"}]
    longer = [*before, {"role": "user", "content": "more"}]
    await db.store.save("chat", before)
    await db.store.save("other", before)

    async def handler(turn: Turn) -> str:
        with pytest.raises(InvalidArgument, match="its own session chat"):
            await db.store.save("chat", before[:1])
        await db.store.save("chat", longer)  # an append, by the cache and by a comparison
        async with SessionsDB(db.engine) as same:
            await same.store.save("chat", longer)
        await db.store.save("other", [])
        return "ok"

    await db.broker.send("chat", "go")
    assert await db.worker(handler, max_attempts=1).run_until_idle() == 1
    texts = [text for _, text, _ in await transcript(db, "chat")]
    assert texts == ["old", "Old", "more", "go", "ok"]
    assert await db.store.load("other") == []
    await db.store.save("chat", before)  # after the turn
    assert await db.store.load("chat") == before
