"""cancel: one message is given up, and the session goes on."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb import (
    LeaseLost,
    Outcome,
    Receipt,
    SessionMessage,
    SessionsDB,
    Turn,
    UnknownReceipt,
)
from sessionsdb.database import open_database_of
from sessionsdb.operations import lease_ends
from sessionsdb.operations.inbox_types import Fail
from tests.support.live import stream, transcript
from tests.support.turns import WORKER, answer_next, bury_next, claim, commit


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


async def fail_next(db: SessionsDB) -> None:
    [lease] = await claim(db)
    await open_database_of(db).runner.write(
        partial(lease_ends.fail, worker=WORKER, failures=[Fail(lease, "Boom: it broke", 3_600.0)])
    )


async def test_a_message_that_waits_is_cancelled_and_the_others_are_handled(db: SessionsDB) -> None:
    _first, second, _third = [await db.broker.send("chat", text) for text in "abc"]
    outcome = await db.broker.cancel(second)
    assert (outcome.receipt, outcome.status, outcome.reply) == (second, "cancelled", None)
    assert outcome.finished_at is not None
    assert (await db.broker.get("chat")).pending == 2
    await answer_next(db, "A")
    await answer_next(db, "C")
    assert await claim(db) == []
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "A", "c", "C"]


async def test_the_message_at_the_head_is_cancelled_and_the_next_gets_its_chance(
    db: SessionsDB,
) -> None:
    first = await db.broker.send("chat", "a")
    await db.broker.send("chat", "b")
    await db.broker.cancel(first)
    assert (await answer_next(db, "B")).positions == [2]


async def test_the_only_message_is_cancelled_and_the_session_is_idle(db: SessionsDB) -> None:
    await db.broker.cancel(await db.broker.send("chat", "a"))
    details = await db.broker.get("chat")
    assert (details.pending, details.running) == (0, False)
    assert await claim(db) == []
    await db.broker.send("chat", "b")
    assert (await answer_next(db, "B")).positions == [2]


async def test_a_message_in_backoff_is_cancelled_and_the_next_one_is_ready_at_once(
    db: SessionsDB,
) -> None:
    first = await db.broker.send("chat", "a")
    await db.broker.send("chat", "b")
    await fail_next(db)
    assert await claim(db) == []
    outcome = await db.broker.cancel(first)
    assert (outcome.status, outcome.error) == ("cancelled", "Boom: it broke")
    assert (await answer_next(db, "B")).positions == [2]
    assert [text for _, text, _ in await transcript(db, "chat")] == ["b", "B"]


async def test_a_cancel_behind_a_backoff_leaves_the_backoff(db: SessionsDB) -> None:
    await db.broker.send("chat", "a")
    second = await db.broker.send("chat", "b")
    await fail_next(db)
    await db.broker.cancel(second)
    assert await claim(db) == []
    assert (await db.broker.get("chat")).pending == 1


async def test_a_running_message_is_cancelled_and_its_turn_can_not_commit(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")
    await db.broker.send("chat", "b")
    [lease] = await claim(db)
    outcome = await db.broker.cancel(receipt)
    assert (outcome.status, outcome.reply) == ("cancelled", None)
    with pytest.raises(LeaseLost):
        await commit(db, lease, "too late")
    assert await transcript(db, "chat") == [("user", "a", False)]
    assert (await answer_next(db, "B")).positions == [2]


async def test_without_keep_partial_nothing_of_a_stopped_turn_is_in_the_transcript(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    await claim(db)
    await stream(database, "chat", "The ans")
    outcome = await db.broker.cancel(receipt, keep_partial=False)
    assert (outcome.status, outcome.reply) == ("cancelled", None)
    assert await transcript(db, "chat") == []
    assert await db.store.load("chat") == []


async def test_the_streamed_text_of_a_stopped_turn_is_its_reply(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    await claim(db)
    await stream(database, "chat", "The ", "ans")
    outcome = await db.broker.cancel(receipt)
    assert outcome.reply is not None
    assert (outcome.reply.content, outcome.reply.interrupted) == ("The ans", True)
    assert await db.broker.outcome(receipt) == outcome
    assert await db.broker.wait(receipt) == outcome
    assert await transcript(db, "chat") == [("user", "a", False), ("assistant", "The ans", True)]


async def test_nothing_is_added_to_the_json_of_a_stopped_reply(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    await claim(db)
    await stream(database, "chat", "The ans")
    await db.broker.cancel(receipt)
    assert await db.store.load("chat") == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "The ans"},
    ]


async def test_pages_that_are_read_together_show_the_mark_too(
    db: SessionsDB, database: Database
) -> None:
    for id in ("chat", "other"):
        await db.broker.register(id, channel="cli", peer="ada", exist_ok=True)
        await db.broker.send(id, "a")
        await claim(db)
        await stream(database, id, "The ans")
        await db.broker.interrupt(id)
    pages = await asyncio.gather(*(db.broker.history(id) for id in ("chat", "other") * 8))
    for page in pages:
        assert [one.interrupted for one in page] == [False, True]
    [oldest] = await db.broker.history("chat", 1, after=1)
    [bounded] = await db.broker.history("chat", 1, max_bytes=100)
    assert oldest == bounded == pages[0][1]


async def test_the_metadata_of_a_caller_is_no_mark(db: SessionsDB) -> None:
    async def answer(turn: Turn) -> str:
        assert (turn.messages[0].metadata, turn.messages[0].interrupted) == (given, False)
        return "ok"

    given = {"interrupted": True}
    receipt = await db.broker.send("chat", "a", metadata=given)
    await db.worker(answer).run_until_idle()
    [asked, _] = await db.broker.history("chat")
    assert (asked.metadata, asked.interrupted) == (given, False)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done"
    assert asked.seq is not None
    await db.store.replace("chat", asked.seq, {"role": "user", "content": "b"})
    [replaced, _] = await db.store.entries("chat")
    assert replaced.message["content"] == "b"
    assert (replaced.metadata, replaced.interrupted) == (given, False)


async def test_a_stopped_reply_that_is_replaced_loses_its_mark(
    db: SessionsDB, database: Database
) -> None:
    receipt = await db.broker.send("chat", "a")
    await claim(db)
    await stream(database, "chat", "The ans")
    await db.broker.cancel(receipt)
    [_, stopped] = await db.store.entries("chat")
    assert (stopped.metadata, stopped.interrupted) == ({"interrupted": True}, True)
    await db.store.replace("chat", stopped.seq, {"role": "assistant", "content": "The answer"})
    [_, whole] = await db.store.entries("chat")
    assert (whole.metadata, whole.interrupted) == (None, False)


def test_only_a_stopped_reply_says_so_on_the_wire() -> None:
    fields = {"role": "assistant", "content": "a", "timestamp": "2024-01-01T00:00:00Z"}
    plain = SessionMessage.model_validate(fields)
    assert "interrupted" not in plain.model_dump()
    assert set(json.loads(plain.model_dump_json())) == {"role", "content", "timestamp"}
    stopped = SessionMessage.model_validate({**fields, "interrupted": True})
    assert stopped.model_dump()["interrupted"] is True
    assert SessionMessage.model_validate_json(stopped.model_dump_json()) == stopped


async def test_what_is_final_is_left_as_it_is(db: SessionsDB) -> None:
    done = await db.broker.send("chat", "a")
    await answer_next(db, "A")
    dead = await db.broker.send("chat", "b")
    await bury_next(db)
    for receipt, status in ((done, "done"), (dead, "dead")):
        before = await db.broker.outcome(receipt)
        assert await db.broker.cancel(receipt) == before
        assert before.status == status
    assert [text for _, text, _ in await transcript(db, "chat")] == ["a", "A"]


async def test_cancelled_twice_is_cancelled_once(db: SessionsDB, database: Database) -> None:
    receipt = await db.broker.send("chat", "a")
    await claim(db)
    await stream(database, "chat", "The ans")
    outcomes: list[Outcome] = await asyncio.gather(*(db.broker.cancel(receipt) for _ in range(5)))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert len(await transcript(db, "chat")) == 2


async def test_an_unknown_receipt_can_not_be_cancelled(db: SessionsDB) -> None:
    with pytest.raises(UnknownReceipt):
        await db.broker.cancel(Receipt(session_id="chat", position=7))


async def test_a_dead_message_that_was_requeued_can_be_cancelled(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "a")
    await bury_next(db)
    await db.broker.send("chat", "b")
    await db.broker.requeue(receipt)
    assert (await db.broker.cancel(receipt)).status == "cancelled"
    assert (await answer_next(db, "B")).positions == [2]
    assert await claim(db) == []


async def test_a_commit_and_a_cancel_at_once_have_one_winner(
    db: SessionsDB, database: Database
) -> None:
    async with SessionsDB(database.url) as other:
        for round in range(20):
            receipt = await db.broker.send("chat", str(round))
            [lease] = await claim(db)
            committed, outcome = await asyncio.gather(
                commit(db, lease, "reply"), other.broker.cancel(receipt), return_exceptions=True
            )
            assert isinstance(outcome, Outcome)
            if isinstance(committed, LeaseLost):
                assert outcome.status == "cancelled"
            else:
                assert committed is None
                assert outcome.status == "done"
            texts = [text for _, text, _ in await transcript(db, "chat")]
            assert texts.count(str(round)) == 1
