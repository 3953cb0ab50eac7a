"""One commit of many turns: each answers for itself, and its messages have their own values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Engine, event

from devtools.databases import Database
from sessionsdb import LeaseLost, SessionsDB, TranscriptRewritten
from sessionsdb.database import open_database_of
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Commit, Lease

REPLY = StoredMessage("assistant", "done", None)


async def claim(db: SessionsDB) -> list[Lease]:
    found = await open_database_of(db).write_autocommit(
        partial(mailbox.claim, worker="w", namespaces=["default"], slots=10, batch=2,
                lease_seconds=30.0),
        wakes=(),
    )  # fmt: skip
    return sorted(found, key=lambda lease: lease.session.id)


def turn_of(lease: Lease) -> Commit:
    return Commit(lease, [*(one.message for one in lease.deliveries), REPLY])


async def commit(db: SessionsDB, turns: Sequence[Commit]) -> list[Any]:
    answers = await open_database_of(db).runner.write(
        partial(mailbox.commit, worker="w", turns=turns)
    )
    return [answer if answer is True else type(answer) for answer in answers]


async def test_each_turn_of_a_commit_has_its_own_answer_and_values(
    db: SessionsDB, database: Database
) -> None:
    for id in ("ended", "one", "rewritten", "sender", "two"):
        await db.broker.register(id, channel="test", peer="p")
    await db.store.save("rewritten", [{"role": "user", "content": "old"}])
    for id in ("ended", "one", "rewritten", "two"):
        await db.broker.send(id, "first")
    await db.broker.send("two", "second", sender="sender", author="Ada")
    leases = await claim(db)
    assert [lease.session.id for lease in leases] == ["ended", "one", "rewritten", "two"]
    await db.broker.end("ended")
    await db.store.save("rewritten", [{"role": "user", "content": "new"}])
    answers = await commit(db, [turn_of(lease) for lease in leases])
    assert answers == [LeaseLost, True, TranscriptRewritten, True]
    rows = await database.query(
        "SELECT m.session_id, m.seq, m.content, m.position, m.sender, i.enqueued_at = m.sent_at,"
        " m.extra IS NULL FROM messages AS m LEFT JOIN inbox AS i"
        " ON i.session_id = m.session_id AND i.position = m.position"
        " WHERE m.content <> 'new' ORDER BY m.session_id, m.seq"
    )
    assert rows == [
        ("one", 1, "first", 1, None, True, True),
        ("one", 2, "done", 1, None, None, True),
        ("two", 1, "first", 1, None, True, True),
        ("two", 2, "second", 2, "sender", True, False),
        ("two", 3, "done", 2, None, None, True),
    ]
    assert await claim(db) == []


async def test_a_message_that_is_ahead_is_claimed_and_committed_at_its_own_position(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    for text in ("first", "second", "third"):
        await db.broker.send("chat", text)
    await database.query("UPDATE inbox SET ahead = true WHERE session_id = 'chat' AND position = 3")
    [lease] = await claim(db)
    assert lease.positions == [3, 1]
    assert await commit(db, [turn_of(lease)]) == [True]
    [lease] = await claim(db)
    assert lease.positions == [2]
    rows = await database.query("SELECT position FROM messages ORDER BY seq")
    assert rows == [(3,), (1,), (1,)]


async def test_sends_and_turns_work_while_events_observe_the_statements(db: SessionsDB) -> None:
    seen: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    await db.broker.register("chat", channel="test", peer="p")
    event.listen(Engine, "before_cursor_execute", record)
    try:
        assert [(await db.broker.send("chat", "go")).position for _ in range(2)] == [1, 2]
        [lease] = await claim(db)
        assert await commit(db, [turn_of(lease)]) == [True]
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    assert any("UPDATE mailboxes" in statement for statement in seen)
