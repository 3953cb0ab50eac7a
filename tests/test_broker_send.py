"""send: receipts, positions, idempotency and back-pressure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    IdempotencyConflict,
    InboxFull,
    InvalidArgument,
    InvalidMessage,
    Limits,
    Receipt,
    SessionEnded,
    SessionsDB,
    UnknownSession,
)
from tests.support.turns import answer_next, bury_next, claim, commit


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.register("other", channel="cli", peer="ada")


async def queued(database: Database) -> int:
    return int(await database.value("SELECT count(*) FROM inbox"))


async def test_a_message_is_in_the_inbox_before_send_returns(
    database: Database, db: SessionsDB
) -> None:
    receipt = await db.broker.send("chat", "hello", sender="other")
    rows = await database.query(
        "SELECT namespace, session_id, position, status, content, sender, attempts FROM inbox"
    )
    assert rows == [("default", "chat", 1, "pending", "hello", "other", 0)]
    assert receipt == Receipt(session_id="chat", position=1)
    assert (await db.broker.get("chat")).pending == 1


async def test_positions_count_up_for_each_session_by_itself(db: SessionsDB) -> None:
    sends = [("chat", 1), ("chat", 2), ("other", 1), ("chat", 3), ("other", 2)]
    for id, position in sends:
        assert (await db.broker.send(id, "hello")).position == position


async def test_a_message_makes_its_session_active(db: SessionsDB) -> None:
    before = await db.broker.get("chat")
    await db.broker.send("chat", "hello")
    after = await db.broker.get("chat")
    assert after.last_active > before.last_active
    assert (after.message_count, after.version) == (0, 1)


async def test_an_unknown_session_is_refused(database: Database, db: SessionsDB) -> None:
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.send("nobody", "hello")
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.send("nobody", "hello", idempotency_key="k")
    assert await queued(database) == 0


async def test_an_ended_session_takes_no_messages(database: Database, db: SessionsDB) -> None:
    await db.broker.end("chat")
    with pytest.raises(SessionEnded, match="chat"):
        await db.broker.send("chat", "hello")
    assert await queued(database) == 0


async def test_text_that_is_no_message_is_refused(database: Database, db: SessionsDB) -> None:
    for text in ("", None, 5, b"bytes", {"role": "user"}):
        with pytest.raises(InvalidMessage):
            await db.broker.send("chat", text)
    assert await queued(database) == 0


async def test_a_text_may_be_as_large_as_the_limit_and_no_larger(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(message_bytes=1_000)) as db:
        frame = len('{"role":"user","content":""}')
        await db.broker.send("chat", "x" * (1_000 - frame - 10))
        with pytest.raises(InvalidMessage, match=r"the limit is 1000; .*Limits\.message_bytes"):
            await db.broker.send("chat", "x" * 1_001)
        with pytest.raises(InvalidMessage, match="limit is 1000"):
            await db.broker.send("chat", "é" * 501)
    assert await queued(database) == 1


async def test_any_text_arrives_as_it_was_sent(db: SessionsDB) -> None:
    for text in ("nul \0 in", "half \ud83d", "\udcff", " ", "\n", "🌳é\u2028", "%s :x $1 '\" \\"):
        first = await db.broker.send("chat", text, idempotency_key=ascii(text))
        again = await db.broker.send("chat", text, idempotency_key=ascii(text))
        assert (again.position, again.duplicate) == (first.position, True)
        await answer_next(db, "seen")
        transcript = await db.store.load("chat")
        assert transcript is not None
        assert transcript[-2:] == [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "seen"},
        ]
        [message, _] = await db.broker.history("chat", 2)
        assert len(message.content) == len(text)


async def test_a_repeated_key_gets_the_first_receipt_and_queues_nothing(
    database: Database, db: SessionsDB
) -> None:
    first = await db.broker.send("chat", "hello", sender="other", idempotency_key="k")
    assert not first.duplicate
    await db.broker.send("chat", "something else")
    active = (await db.broker.get("chat")).last_active
    again = await db.broker.send("chat", "hello", sender="other", idempotency_key="k")
    assert again == Receipt(session_id="chat", position=first.position, duplicate=True)
    assert await queued(database) == 2
    assert (await db.broker.get("chat")).pending == 2
    assert (await db.broker.get("chat")).last_active == active


async def test_a_key_with_other_arguments_is_a_conflict(database: Database, db: SessionsDB) -> None:
    await db.broker.send("chat", "hello", sender="other", idempotency_key="k")
    others = [("hello!", "bob"), ("hello", "eve"), ("hello", None), ("hello\0", "bob")]
    for text, sender in others:
        with pytest.raises(IdempotencyConflict, match=r"'k'.*chat"):
            await db.broker.send("chat", text, sender=sender, idempotency_key="k")
    assert await queued(database) == 1


async def test_the_order_of_the_keys_of_an_object_makes_no_other_arguments(
    db: SessionsDB,
) -> None:
    block = {"type": "text", "text": "hello"}
    message = {"role": "user", "content": [block, {"type": "image", "of": {"a": 1, "b": 2}}]}
    turned = {
        "content": [
            dict(reversed(block.items())), {"of": {"b": 2, "a": 1}, "type": "image"}
        ],
        "role": "user",
    }  # fmt: skip
    metadata: dict[str, Any] = {"a": 1, "b": {"c": 2, "d": 3}}
    back = {"b": {"d": 3, "c": 2}, "a": 1}
    for key, one, other in (("text", "hello", "hello"), ("rich", message, turned)):
        first = await db.broker.send("chat", one, metadata=metadata, idempotency_key=key)
        again = await db.broker.send("chat", other, metadata=back, idempotency_key=key)
        assert (again.position, again.duplicate) == (first.position, True)
        for changed in ({**metadata, "a": 2}, {**metadata, "b": {"c": 3, "d": 2}}, None):
            with pytest.raises(IdempotencyConflict):
                await db.broker.send("chat", one, metadata=changed, idempotency_key=key)
    turned["content"] = list(reversed(message["content"]))  # the order of a list counts
    with pytest.raises(IdempotencyConflict):
        await db.broker.send("chat", turned, metadata=metadata, idempotency_key="rich")


async def test_a_key_belongs_to_its_session_and_namespace(db: SessionsDB) -> None:
    elsewhere = db.in_namespace("elsewhere")
    await elsewhere.broker.register("chat", channel="cli", peer="ada")
    receipts = [
        await handle.broker.send(id, text, idempotency_key="k")
        for handle, id, text in [(db, "chat", "a"), (db, "other", "b"), (elsewhere, "chat", "c")]
    ]
    assert [r.duplicate for r in receipts] == [False, False, False]
    assert [r.position for r in receipts] == [1, 1, 1]


async def test_long_keys_that_differ_at_their_end_are_different(db: SessionsDB) -> None:
    long = "k" * 511
    first = await db.broker.send("chat", "a", idempotency_key=long + "1")
    second = await db.broker.send("chat", "b", idempotency_key=long + "2")
    again = await db.broker.send("chat", "a", idempotency_key=long + "1")
    assert (first.position, second.position, again.position) == (1, 2, 1)
    assert again.duplicate
    with pytest.raises(IdempotencyConflict, match="kkk"):
        await db.broker.send("chat", "other", idempotency_key=long + "1")
    for bad in ("", "k" * 513, "nul\0", 5):
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            await db.broker.send("chat", "a", idempotency_key=bad)


async def test_a_key_is_known_when_its_message_is_done_dead_or_cancelled(db: SessionsDB) -> None:
    await db.broker.send("chat", "one", idempotency_key="1")
    await answer_next(db, "done")
    await db.broker.send("chat", "two", idempotency_key="2")
    await bury_next(db)
    await db.broker.send("chat", "three", idempotency_key="3")
    await db.broker.end("chat")
    for position, text in enumerate(["one", "two", "three"], 1):
        again = await db.broker.send("chat", text, idempotency_key=str(position))
        assert (again.position, again.duplicate) == (position, True)


async def test_one_key_sent_at_once_from_two_handles_queues_one(
    database: Database, db: SessionsDB
) -> None:
    async with SessionsDB(database.url) as second:
        for round in range(15):
            receipts = await asyncio.gather(
                *(
                    handle.broker.send("chat", "hello", idempotency_key=f"k-{round}")
                    for handle in (db, second) * 4
                )
            )
            assert {r.position for r in receipts} == {round + 1}
            assert sorted(r.duplicate for r in receipts) == [False] + [True] * 7
    assert await queued(database) == 15


async def test_one_key_with_other_texts_at_once_queues_one_and_refuses_the_rest(
    database: Database, db: SessionsDB
) -> None:
    async with SessionsDB(database.url) as second:
        answers = await asyncio.gather(
            *(
                handle.broker.send("chat", f"text {n}", idempotency_key="k")
                for n, handle in enumerate((db, second) * 4)
            ),
            return_exceptions=True,
        )
    accepted = [a for a in answers if isinstance(a, Receipt)]
    refused = [a for a in answers if isinstance(a, IdempotencyConflict)]
    assert (len(accepted), len(refused)) == (1, 7)
    assert await queued(database) == 1


async def test_a_full_inbox_pushes_back_and_writes_nothing(
    database: Database,
) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=3)) as db:
        first = await db.broker.send("chat", "1", idempotency_key="k")
        answers = await asyncio.gather(
            *(db.broker.send("chat", str(n)) for n in range(2, 8)), return_exceptions=True
        )
        assert [a.position for a in answers if isinstance(a, Receipt)] == [2, 3]
        assert sum(isinstance(a, InboxFull) for a in answers) == 4
        with pytest.raises(InboxFull, match=r"chat is full: 3 .*Limits\.pending"):
            await db.broker.send("chat", "one more", idempotency_key="new")
        assert await queued(database) == 3
        assert (await db.broker.get("chat")).pending == 3
        # A repeated key adds no message, and another session has room.
        again = await db.broker.send("chat", "1", idempotency_key="k")
        assert again == first.model_copy(update={"duplicate": True})
        await db.broker.send("other", "hello")
        # A finished message makes room. The refused key can still be used.
        await answer_next(db, "done")
        receipt = await db.broker.send("chat", "one more", idempotency_key="new")
        assert (receipt.position, receipt.duplicate) == (4, False)


async def test_messages_are_handled_in_the_order_they_were_sent(db: SessionsDB) -> None:
    await asyncio.gather(*(db.broker.send("chat", str(n)) for n in range(20)))
    for _ in range(20):
        await answer_next(db)
    transcript = await db.store.load("chat")
    assert transcript is not None
    assert [message["content"] for message in transcript] == [str(n) for n in range(20)]


async def test_message_count_is_true_before_while_and_after_a_turn(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    assert (await db.broker.get("chat")).message_count == 0
    [lease] = await claim(db)
    during = await db.broker.get("chat")
    assert (during.message_count, during.running, during.pending) == (0, True, 0)
    assert len(await db.broker.history("chat")) == 0
    await db.store.append("chat", [{"role": "system", "content": "from the side"}])
    assert (await db.broker.get("chat")).message_count == 1
    await commit(db, lease, "one", "two")
    after = await db.broker.get("chat")
    assert (after.message_count, after.running) == (4, False)
    assert [s.message_count for s in await db.broker.list() if s.id == "chat"] == [4]
    assert [m.content for m in await db.broker.history("chat")] == [
        "from the side",
        "hello",
        "one",
        "two",
    ]


async def test_a_sender_must_be_a_session_of_the_namespace(
    db: SessionsDB, database: Database
) -> None:
    await db.in_namespace("acme").broker.register("theirs", channel="c", peer="p")
    for sender in ("nobody", "theirs"):
        with pytest.raises(UnknownSession, match=f"{sender}, which is given as the sender"):
            await db.broker.send("chat", "hello", sender=sender)
        with pytest.raises(UnknownSession, match=r"unknown session: gone$"):
            await db.broker.send("gone", "hello", sender=sender)
    with pytest.raises(UnknownSession, match=r"unknown session: gone$"):
        await db.broker.send("gone", "hello", sender="other")
    assert await queued(database) == 0
    # One unknown sender refuses no other message of a batch.
    answers = await asyncio.gather(
        *(db.broker.send("chat", "hi", sender=sender) for sender in ("other", "nobody", "chat")),
        return_exceptions=True,
    )
    assert [isinstance(answer, Receipt) for answer in answers] == [True, False, True]
    await db.broker.end("other")
    await db.broker.send("chat", "hello", sender="other")
    assert await queued(database) == 3


async def test_the_inbox_shows_the_author_and_the_metadata_of_a_message(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello", author="ann", metadata={"ticket": 7})
    await db.broker.send("chat", "bare")
    first, second = (outcome.message for outcome in await db.broker.inbox("chat"))
    assert first is not None
    assert (first.author, first.metadata, first.interrupted) == ("ann", {"ticket": 7}, False)
    assert second is not None
    assert (second.author, second.metadata) == (None, None)
