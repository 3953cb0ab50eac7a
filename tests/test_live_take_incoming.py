"""turn.take_incoming: messages that arrive during a turn join it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    Handler,
    InvalidArgument,
    InvalidMessage,
    LeaseLost,
    Outcome,
    Reply,
    SessionMessage,
    SessionsDB,
    StorageError,
    Turn,
)
from sessionsdb.database import open_database_of
from sessionsdb.operations import joining
from sessionsdb.schema import inbox
from tests.support.live import Hanging, transcript
from tests.support.turns import bury_next, claim
from tests.support.waiting import until
from tests.support.work import SOON, running


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


async def work(db: SessionsDB, handler: Handler, **options: Any) -> int:
    return await db.worker(handler, retry=SOON, **options).run_until_idle()


async def texts(db: SessionsDB) -> list[str]:
    return [text for _, text, _ in await transcript(db, "chat")]


async def statuses(db: SessionsDB, *receipts: Any) -> list[tuple[str, int]]:
    found: list[Outcome] = [await db.broker.outcome(receipt) for receipt in receipts]
    return [(one.status, one.attempts) for one in found]


def contents(messages: list[SessionMessage]) -> list[str]:
    return [one.content for one in messages]


# ---- what joins ----------------------------------------------------------------------------------


async def test_what_arrives_during_a_turn_joins_it(db: SessionsDB) -> None:
    seen = []

    async def handler(turn: Turn) -> str:
        assert await turn.take_incoming() == []
        assert [one["content"] for one in turn.inputs] == ["a"]
        for text in "bc":
            await db.broker.send("chat", text)
        seen.append(contents(await turn.take_incoming()))
        assert await turn.take_incoming() == []
        assert contents(turn.messages) == ["a", "b", "c"]
        assert [one.position for one in turn.receipts] == [1, 2, 3]
        assert [one["content"] for one in turn.inputs] == ["a", "b", "c"]
        assert turn.senders == [None] * 3
        assert turn.attempt == 1
        return "all"

    receipts = [await db.broker.send("chat", "a")]
    assert await work(db, handler) == 1
    assert seen == [["b", "c"]]
    assert await texts(db) == ["a", "b", "c", "all"]
    receipts += [receipts[0].model_copy(update={"position": n}) for n in (2, 3)]
    assert [status for status, _ in await statuses(db, *receipts)] == ["done"] * 3
    for receipt in receipts:
        reply = (await db.broker.outcome(receipt)).reply
        assert reply is not None
        assert reply.content == "all"
    assert (await db.broker.get("chat")).pending == 0


async def test_a_limit_takes_so_many(db: SessionsDB) -> None:
    async def handler(turn: Turn) -> str:
        if turn.text != "a":
            return turn.text.upper()
        assert await turn.take_incoming(0) == []
        assert contents(await turn.take_incoming(1)) == ["b"]
        assert contents(await turn.take_incoming(limit=2)) == ["c", "d"]
        with pytest.raises(InvalidArgument, match="limit"):
            await turn.take_incoming(-1)
        return "A"

    for text in "abcde":
        await db.broker.send("chat", text)
    assert await work(db, handler) == 2
    assert await texts(db) == ["a", "b", "c", "d", "A", "e", "E"]


MANY = 34_000
"""A statement has at most 32,767 parameters."""


async def send_many(db: SessionsDB, database: Database) -> None:
    """Send so many messages to the session, by copies of the first of them."""
    position = (await db.broker.send("chat", "m")).position
    columns = [column.name for column in inbox.c]
    copied = ", ".join("n" if name == "position" else name for name in columns)
    await database.query(
        f"WITH RECURSIVE numbers(n) AS (SELECT {position + 1} UNION ALL"
        f" SELECT n + 1 FROM numbers WHERE n < {position + MANY - 1})"
        f" INSERT INTO inbox ({', '.join(columns)})"
        f" SELECT {copied} FROM inbox, numbers WHERE position = {position}"
    )
    await database.query(
        f"UPDATE mailboxes SET tail = tail + {MANY - 1}, pending = pending + {MANY - 1}"
    )


async def test_a_turn_takes_more_messages_than_a_statement_has_parameters(
    db: SessionsDB, database: Database
) -> None:
    taken: list[int] = []

    async def handler(turn: Turn) -> str:
        await send_many(db, database)
        taken.append(len(await turn.take_incoming()))
        return "all"

    receipt = await db.broker.send("chat", "a")
    assert await work(db, handler, max_attempts=1) == 1
    assert taken == [MANY]
    assert (await db.broker.outcome(receipt)).status == "done"


async def test_the_sender_of_a_joined_message_is_known(db: SessionsDB) -> None:
    await db.broker.register("other", channel="cli", peer="ada")

    async def handler(turn: Turn) -> list[Any]:
        await db.broker.send("chat", "from the other", sender="other")
        joined = await turn.take_incoming()
        assert turn.senders == [None, "other"]
        assert "another agent" in turn.prompt
        return [{"role": "assistant", "content": "one"}, *joined]

    await db.broker.send("chat", "a")
    await work(db, handler)
    history = await db.broker.history("chat")
    assert [(one.content, one.sender) for one in history] == [
        ("a", None),
        ("one", None),
        ("from the other", "other"),
    ]


async def test_a_requeued_message_joins_before_the_others(db: SessionsDB) -> None:
    dead = await db.broker.send("chat", "dead")
    await bury_next(db)
    await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> str:
        await db.broker.send("chat", "b")
        await db.broker.requeue(dead)
        assert contents(await turn.take_incoming()) == ["dead", "b"]
        return "ok"

    assert await work(db, handler) == 1
    assert await texts(db) == ["a", "dead", "b", "ok"]
    assert await claim(db) == []


# ---- where a joined message stands ---------------------------------------------------------------


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_joined_message_stands_where_the_handler_puts_it(
    db: SessionsDB, wrapped: bool
) -> None:
    async def handler(turn: Turn) -> Any:
        for text in "bcd":
            await db.broker.send("chat", text)
        _b, c, d = await turn.take_incoming()
        answer = [reply("one"), d, reply("two"), c]
        return Reply(answer, input_tokens=3) if wrapped else answer

    await db.broker.send("chat", "a")
    assert await work(db, handler, max_attempts=1) == 1
    assert await texts(db) == ["a", "b", "one", "d", "two", "c"]
    assert await db.store.load("chat") == [
        {"role": role, "content": text} for role, text, _ in await transcript(db, "chat")
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda joined, turn: [joined, joined],
        lambda joined, turn: [turn.messages[0]],
        lambda joined, turn: [joined.model_copy()],
        lambda joined, turn: joined,
    ],
    ids=["twice", "the first message", "a copy", "no list"],
)
async def test_a_message_that_did_not_join_can_not_be_placed(
    db: SessionsDB, wrong: Callable[[SessionMessage, Turn], Any]
) -> None:
    receipts = [await db.broker.send("chat", text) for text in "ab"]

    async def handler(turn: Turn) -> Any:
        if turn.text == "b":
            return None
        [joined] = await turn.take_incoming()
        return wrong(joined, turn)

    await work(db, handler, max_attempts=1)
    assert await statuses(db, *receipts) == [("dead", 1), ("done", 1)]
    outcome = await db.broker.outcome(receipts[0])
    assert outcome.error is not None
    assert InvalidMessage.__name__ in outcome.error


# ---- turns that do not commit --------------------------------------------------------------------


async def test_a_joined_message_bears_neither_the_attempt_nor_the_death(db: SessionsDB) -> None:
    receipts = [await db.broker.send("chat", text) for text in "ab"]
    seen = []

    async def handler(turn: Turn) -> str | None:
        seen.append((turn.text, turn.attempt))
        if turn.text == "a":
            await turn.take_incoming()
            raise ValueError("no")
        return None

    worker = db.worker(handler, retry=SOON, max_attempts=2)
    await worker.run_until_idle()
    assert seen == [("a", 1), ("a", 2), ("b", 1)]
    assert await statuses(db, *receipts) == [("dead", 2), ("done", 1)]
    assert worker.died == 1


async def test_a_joined_message_waits_again_when_the_worker_stops(db: SessionsDB) -> None:
    receipts = [await db.broker.send("chat", text) for text in "ab"]
    joined = asyncio.Event()

    async def handler(turn: Turn) -> None:
        await turn.take_incoming()
        joined.set()
        await asyncio.Event().wait()

    async with running(db, handler):
        await joined.wait()
    assert await statuses(db, *receipts) == [("pending", 0), ("pending", 0)]
    assert (await db.broker.get("chat")).pending == 2


async def test_a_joined_message_waits_again_when_the_transcript_was_rewritten(
    db: SessionsDB, database: Database
) -> None:
    receipts = [await db.broker.send("chat", text) for text in "ab"]
    await db.store.save("chat", [reply("old")])
    runs = []

    async def handler(turn: Turn) -> str:
        runs.append(contents(await turn.take_incoming()))
        if len(runs) == 1:
            await database.query("UPDATE sessions SET rewrites = rewrites + 1")
        return "ok"

    await work(db, handler)
    assert runs == [["b"], ["b"]]
    assert await statuses(db, *receipts) == [("done", 1), ("done", 0)]
    assert await texts(db) == ["old", "a", "b", "ok"]


async def test_a_joined_message_is_cancelled_with_its_turn_by_an_interrupt(db: SessionsDB) -> None:
    receipts = [await db.broker.send("chat", text) for text in "ab"]
    joined = asyncio.Event()

    async def handler(turn: Turn) -> None:
        await turn.take_incoming()
        joined.set()
        await asyncio.Event().wait()

    async with running(db, handler, lease_seconds=3_600):
        await joined.wait()
        stopped = await db.broker.interrupt("chat")
    assert [one.receipt.position for one in stopped] == [1, 2]
    assert await statuses(db, *receipts) == [("cancelled", 1), ("cancelled", 0)]
    assert await texts(db) == ["a", "b"]


async def test_the_cancel_of_a_joined_message_stops_the_turn_and_the_others_wait_again(
    db: SessionsDB,
) -> None:
    receipts = [await db.broker.send("chat", text) for text in "abc"]
    seen: list[tuple[list[str], str | None]] = []
    joined = asyncio.Event()

    async def handler(turn: Turn) -> str:
        if not seen:
            await turn.take_incoming()
            joined.set()
            try:
                await asyncio.Event().wait()
            finally:
                seen.append((contents(turn.messages), turn.stopped_by))
        return "ok"

    async with running(db, handler, lease_seconds=3_600):
        await joined.wait()
        await db.broker.cancel(receipts[1], keep_partial=False)
        for receipt in (receipts[0], receipts[2]):
            assert (await db.broker.wait(receipt, timeout=20)).status == "done"
    assert seen == [(["a", "b", "c"], "cancel")]
    assert await texts(db) == ["a", "ok", "c", "ok"]


# ---- when it is too late -------------------------------------------------------------------------


async def test_nothing_joins_after_the_handler_has_returned(db: SessionsDB) -> None:
    turns: list[Turn] = []

    async def handler(turn: Turn) -> str:
        turns.append(turn)
        return "ok"

    await db.broker.send("chat", "a")
    await work(db, handler)
    late = await db.broker.send("chat", "b")
    with pytest.raises(LeaseLost):
        await turns[0].take_incoming()
    assert await statuses(db, late) == [("pending", 0)]


async def test_nothing_joins_a_turn_that_lost_its_lease(db: SessionsDB, database: Database) -> None:
    caught: list[str] = []

    async def handler(turn: Turn) -> str:
        if turn.text == "a" and turn.attempt == 1:
            # As if the hint that its lease was taken were lost: it would cancel the turn.
            worker._loop._leases._look_for_stops = lambda _: asyncio.sleep(0)
            await database.query(
                "UPDATE mailboxes SET owner = NULL, lease_until = NULL, taken = 0, last_taken = 0,"
                " epoch = epoch + 1, ready_at = '2024-01-01 00:00:00.000000'"
            )
            await database.query("UPDATE inbox SET status = 'pending'")
            try:
                await turn.take_incoming()
            except LeaseLost as error:
                caught.append(error.session_id)
                raise
        return "ok"

    receipts = [await db.broker.send("chat", text) for text in "ab"]
    worker = db.worker(handler, concurrency=1, lease_seconds=3_600)
    await worker.run_until_idle()
    assert caught == ["chat"]
    assert await texts(db) == ["a", "ok", "b", "ok"]
    assert await statuses(db, *receipts) == [("done", 2), ("done", 1)]


async def test_a_stopped_handler_takes_nothing(db: SessionsDB) -> None:
    hanging = Hanging()
    async with running(db, hanging, lease_seconds=3_600):
        await db.broker.send("chat", "a")
        turn = await hanging.begun()
        await db.broker.send("chat", "b")
        await db.broker.interrupt("chat")
        await until(lambda: hanging.stopped)
        with pytest.raises(LeaseLost):
            await turn.take_incoming()
        hanging.release()


# ---- takes that are cancelled, or whose answers are lost ----------------------------------------


Take = Callable[[Turn], Awaitable[Any]]


async def cancelled_take(db: SessionsDB, turn: Turn) -> None:
    """Take, and cancel the call when its write is under way: the messages join all the same."""
    task = asyncio.create_task(turn.take_incoming())
    await asyncio.sleep(0)  # the call has begun, and its write is in a task of its own
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_messages_of_a_cancelled_take_come_with_the_next_one(db: SessionsDB) -> None:
    async def handler(turn: Turn) -> str:
        await cancelled_take(db, turn)
        assert contents(turn.messages) == ["a"]
        await db.broker.send("chat", "d")
        assert contents(await turn.take_incoming(1)) == ["b"]
        assert contents(await turn.take_incoming()) == ["c", "d"]
        return "ok"

    receipts = [await db.broker.send("chat", text) for text in "abc"]
    assert await work(db, handler, max_attempts=1) == 1
    assert await texts(db) == ["a", "b", "c", "d", "ok"]
    assert [status for status, _ in await statuses(db, *receipts)] == ["done"] * 3


@pytest.mark.parametrize("sees", [0, 1])
async def test_messages_that_the_handler_never_got_are_answered_by_the_next_turn(
    db: SessionsDB, sees: int
) -> None:
    async def handler(turn: Turn) -> str:
        if turn.text == "a":
            await cancelled_take(db, turn)
            await turn.take_incoming(sees) if sees else None
            assert len(turn.messages) == 1 + sees
            turn.send("chat", "staged")
        return f"to {turn.text}".replace("\n\n", " ")

    receipts = [await db.broker.send("chat", text) for text in "abc"]
    await work(db, handler, max_attempts=1)
    assert [status for status, _ in await statuses(db, *receipts)] == ["done"] * 3
    first = ["a", "to a", "b", "to b"] if not sees else ["a", "b", "to a b"]
    assert await texts(db) == [*first, "c", "to c", "staged", "to staged"]
    assert await claim(db) == []


async def test_a_take_that_is_cancelled_by_a_failing_handler_leaves_its_messages(
    db: SessionsDB,
) -> None:
    async def handler(turn: Turn) -> str:
        if turn.text == "a":
            await cancelled_take(db, turn)
            raise ValueError("no")
        return "ok"

    receipts = [await db.broker.send("chat", text) for text in "ab"]
    await work(db, handler, max_attempts=1)
    assert await statuses(db, *receipts) == [("dead", 1), ("done", 1)]
    assert await texts(db) == ["b", "ok"]


@pytest.mark.parametrize("then", ["take again", "return"])
async def test_a_lost_answer_loses_and_doubles_nothing(db: SessionsDB, then: str) -> None:
    """The join was committed, and its caller was told that this is not known."""
    runner = open_database_of(db).runner
    write = runner.write
    lost: list[str] = []

    async def lose_join(operation: Any) -> Any:
        result = await write(operation)
        if isinstance(operation, partial) and operation.func is joining.join and not lost:
            lost.append("answer")
            raise StorageError("the answer was lost")
        return result

    async def handler(turn: Turn) -> str:
        if turn.text == "a":
            runner.write = lose_join
            taken = await turn.take_incoming(1)
            assert contents(taken) == ["b"]
            if then == "take again":
                assert contents(await turn.take_incoming()) == ["c"]
        return f"to {turn.text}".replace("\n\n", " ")

    receipts = [await db.broker.send("chat", text) for text in "abc"]
    try:
        await work(db, handler, max_attempts=1)
    finally:
        runner.write = write
    assert lost == ["answer"]
    assert [status for status, _ in await statuses(db, *receipts)] == ["done"] * 3
    tail = ["c", "to a b c"] if then == "take again" else ["to a b", "c", "to c"]
    assert await texts(db) == ["a", "b", *tail]


async def test_concurrent_takes_share_the_messages(db: SessionsDB) -> None:
    async def handler(turn: Turn) -> str:
        taken = await asyncio.gather(*(turn.take_incoming(1) for _ in range(5)))
        assert [contents(one) for one in taken] == [["b"], ["c"], ["d"], [], []]
        return "ok"

    for text in "abcd":
        await db.broker.send("chat", text)
    assert await work(db, handler, max_attempts=1) == 1
    assert await texts(db) == ["a", "b", "c", "d", "ok"]
