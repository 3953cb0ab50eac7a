"""Follow a session: the events of a conversation, in their order."""

from __future__ import annotations

from functools import partial

import pytest
from pydantic import TypeAdapter
from sqlalchemy import Connection, text

from devtools.databases import Database
from sessionsdb import Event, SessionsDB, TranscriptRewritten, UnknownSession
from sessionsdb.database import open_database_of
from sessionsdb.events import event_from_json
from sessionsdb.operations import expiry, lease_ends, stopping
from sessionsdb.operations.inbox_types import NO_USAGE, Fail, Lease
from tests.support.following import Follow, following, stream
from tests.support.turns import WORKER, answer_next, bury_next, claim, commit
from tests.support.work import expire_leases


@pytest.fixture(autouse=True)
async def chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="test", peer="tester")


async def fail(db: SessionsDB, lease: Lease, *, retry_in: float) -> None:
    failure = Fail(lease, "Boom: it broke", retry_in=retry_in)
    await open_database_of(db).write(
        lambda c: lease_ends.fail(c, WORKER, [failure]), wakes=("done", "work")
    )


def cancelled_positions(follow: Follow) -> list[int]:
    """The positions of the messages that were told as cancelled, in order."""
    return [
        receipt.position
        for event in follow.seen
        if event.type == "turn" and event.status == "cancelled"
        for receipt in event.receipts
    ]


async def test_a_whole_turn_is_told_in_order(db: SessionsDB) -> None:
    async with following(db, "chat") as follow:
        assert await follow.take(1) == ["idle"]
        receipt = await db.broker.send("chat", "hello")
        assert await follow.take(1) == ["queued hello"]
        [lease] = await claim(db)
        assert await follow.take(1) == ["turn started"]
        size = await stream(db, lease, "Rom", "e is")
        assert await follow.take(1) == ["delta 0 Rome is"]
        await stream(db, lease, " old", {"name": "search"}, first=2, start=size)
        assert await follow.take(2) == ["delta 7  old", "data tool {'name': 'search'}"]
        await commit(db, lease, "Rome is old")
        told = await follow.take(4)
        assert told == ["message hello", "message Rome is old", "turn done", "idle"]
    started, done = (e for e in follow.seen if e.type == "turn")
    assert started.type == done.type == "turn"
    assert started.run == done.run == lease.epoch
    assert (started.attempt, done.attempt) == (1, 1)
    assert [r.position for r in done.receipts] == [receipt.position]


async def test_each_cursor_leads_to_the_rest(db: SessionsDB) -> None:
    """Also a cursor from between two events of one look."""
    async with following(db, "chat") as follow:
        await follow.take(1)
        await db.broker.send("chat", "one")
        await db.broker.send("chat", "two")
        await follow.take(2)
        await answer_next(db, "eins")
        await bury_next(db)
        told = await follow.until("idle")
    whole = [*told]
    assert [t for t in whole if "started" not in t] == [
        "message one", "message eins", "turn done", "turn dead", "idle",
    ]  # fmt: skip
    behind_queued = follow.seen[:3]
    rest = [t for t in whole if "started" not in t]
    for event in [behind_queued[-1], *follow.seen[3:-1]]:
        left = rest
        if event in follow.seen[3:]:
            done = [t for t in whole[: follow.seen.index(event) - 2] if "started" not in t]
            left = rest[len(done) :]
        async with following(db, "chat", after=event.cursor) as again:
            assert await again.take(len(left)) == left


async def test_a_follower_from_the_start_is_told_all_messages(db: SessionsDB) -> None:
    for word in ("one", "two"):
        await db.broker.send("chat", word)
        await answer_next(db, f"re: {word}")
    await db.broker.send("chat", "waits")
    async with following(db, "chat", after="start") as follow:
        assert await follow.take(7) == [
            "queued waits",
            *("message one", "message re: one", "turn done"),
            *("message two", "message re: two", "turn done"),
        ]
        await follow.stays_silent()


async def test_history_and_then_follow_lose_nothing(db: SessionsDB) -> None:
    await db.broker.send("chat", "one")
    await answer_next(db, "eins")
    last = (await db.broker.history("chat"))[-1]
    await db.broker.send("chat", "two")
    await answer_next(db, "zwei")
    async with following(db, "chat", after=last.seq) as follow:
        assert await follow.take(4) == ["message two", "message zwei", "turn done", "idle"]


async def test_a_follower_that_joins_is_told_the_partial_reply(db: SessionsDB) -> None:
    await db.broker.send("chat", "runs")
    await db.broker.send("chat", "waits")
    [lease] = await claim(db)
    await stream(db, lease, "so ", "far")
    async with following(db, "chat") as follow:
        assert await follow.take(3) == ["turn started", "queued waits", "delta 0 so far"]


async def test_the_first_event_of_a_session_in_backoff_is_its_failed_turn(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    await fail(db, lease, retry_in=60)
    async with following(db, "chat") as follow:
        event = await follow.next()
    assert event.type == "turn"
    assert (event.status, event.attempt, event.error) == ("failed", 1, "Boom: it broke")
    assert event.retry_at is not None


async def test_the_pieces_of_a_failed_run_are_void(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    async with following(db, "chat") as follow:
        await follow.until("queued hello")
        [lease] = await claim(db)
        await stream(db, lease, "wrong")
        await follow.until("delta 0 wrong")
        await fail(db, lease, retry_in=0)
        assert await follow.take(2) == ["reset", "turn failed"]
        await open_database_of(db).runner.write(_wake)
        [again] = await claim(db)
        await stream(db, again, "right")
        assert await follow.take(2) == ["turn started", "delta 0 right"]
        await commit(db, again, "right, and more")
        told = await follow.until("idle")
    assert told == ["message hello", "message right, and more", "turn done", "idle"]


def _wake(connection: Connection) -> int:
    return expiry.wake(connection, namespaces=None)


async def test_pieces_that_are_written_anew_come_behind_a_reset(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    await stream(db, lease, "one ", "two")
    async with following(db, "chat") as follow:
        await follow.until("delta 0 one two")
        await stream(db, lease, "one two three", generation=1)
        assert await follow.take(2) == ["reset", "delta 0 one two three"]


async def test_cancelled_messages_are_told(db: SessionsDB) -> None:
    await db.broker.send("chat", "runs")
    await db.broker.send("chat", "waits")
    [lease] = await claim(db)
    await stream(db, lease, "half")
    async with following(db, "chat") as follow:
        await follow.until("delta 0 half")
        database = open_database_of(db)
        await database.write(lambda c: stopping.cancel(c, db.namespace, "chat", 2), wakes=("done",))
        assert await follow.take(1) == ["turn cancelled"]
        waiting = follow.seen[-1]
        assert waiting.type == "turn"
        assert (waiting.run, waiting.attempt) == (None, 0)
        await database.write(lambda c: stopping.interrupt(c, db.namespace, "chat"), wakes=("done",))
        # The partial reply became a message, so its pieces are not void.
        assert await follow.take(4) == ["message runs", "message half", "turn cancelled", "idle"]


async def test_cancelled_without_the_partial_reply(db: SessionsDB) -> None:
    await db.broker.send("chat", "runs")
    [lease] = await claim(db)
    await stream(db, lease, "half")
    async with following(db, "chat") as follow:
        await follow.until("delta 0 half")
        await open_database_of(db).write(
            lambda c: stopping.interrupt(c, db.namespace, "chat", keep_partial=False),
            wakes=("done",),
        )
        assert await follow.take(3) == ["reset", "turn cancelled", "idle"]


async def test_an_end_does_not_end_the_iterator_and_a_deletion_does(db: SessionsDB) -> None:
    async with following(db, "chat") as follow:
        await follow.take(1)
        await db.broker.send("chat", "hello")
        await follow.take(1)
        await db.broker.end("chat")
        assert await follow.take(2) == ["turn cancelled", "ended"]
        await db.store.append("chat", [{"role": "user", "content": "still"}])
        assert await follow.take(1) == ["message still"]
        await db.store.delete("chat")
        assert await follow.take(1) == ["deleted"]
        with pytest.raises(StopAsyncIteration):
            await follow.next()


async def test_an_unknown_session_is_refused_at_the_first_step(db: SessionsDB) -> None:
    async with following(db, "nobody") as follow:
        with pytest.raises(UnknownSession):
            await follow.next()


async def test_a_rewritten_transcript_is_told(db: SessionsDB) -> None:
    await db.store.save("chat", [{"role": "user", "content": str(n)} for n in range(3)])
    async with following(db, "chat", after="start") as follow:
        assert await follow.take(4) == ["message 0", "message 1", "message 2", "idle"]
        await db.store.save("chat", [{"role": "user", "content": "other"}])
        assert await follow.take(2) == ["rewritten", "message other"]
        event = follow.seen[-2]
        assert event.type == "rewritten"
        assert event.version == await db.store.version("chat")


async def test_a_turn_streams_on_after_its_transcript_was_rewritten(db: SessionsDB) -> None:
    await db.store.save("chat", [{"role": "user", "content": "old"}])
    await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    async with following(db, "chat") as follow:
        assert await follow.take(1) == ["turn started"]
        size = await stream(db, lease, "Rom")
        assert await follow.take(1) == ["delta 0 Rom"]
        await db.store.truncate("chat", keep_through=0)
        assert await follow.take(1) == ["rewritten"]
        await stream(db, lease, "e", first=1, start=size)
        assert await follow.take(1) == ["delta 3 e"]
        with pytest.raises(TranscriptRewritten):
            await commit(db, lease, "Rome")
        rerun = partial(lease_ends.rerun, worker=WORKER, lease=lease, usage=NO_USAGE)
        assert await open_database_of(db).write(rerun, wakes=("work",))
        await claim(db)
        assert await follow.take(2) == ["reset", "turn started"]
    assert await db.store.load("chat") == []


async def test_a_session_that_is_made_again_is_told_from_the_start(db: SessionsDB) -> None:
    await db.broker.send("chat", "old")
    await answer_next(db, "alt")
    async with following(db, "chat", after="start") as follow:
        await follow.until("idle")
        cursor = follow.cursor
    await db.store.delete("chat")
    await db.broker.register("chat", channel="test", peer="tester")
    await db.broker.send("chat", "new")
    await answer_next(db, "neu")
    async with following(db, "chat", after=cursor) as follow:
        assert await follow.take(5) == [
            "rewritten", "message new", "message neu", "turn done", "idle",
        ]  # fmt: skip


async def test_deleted_and_made_again_between_two_looks(db: SessionsDB, database: Database) -> None:
    async with following(db, "chat") as follow:
        await follow.take(1)
        async with db.engine.begin() as connection:
            for statement in (
                "DELETE FROM sessions WHERE id = 'chat'",
                "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at,"
                " last_active, incarnation) VALUES ('default', 'chat', 'c', 'p',"
                " '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000',"
                " '2026-01-01 00:00:00.000000', 'another')",
                "INSERT INTO mailboxes (namespace, session_id) VALUES ('default', 'chat')",
            ):
                await connection.execute(text(statement))
        assert await follow.take(2) == ["rewritten", "idle"]


async def test_a_purged_cursor_goes_on_with_what_is_left(
    db: SessionsDB, database: Database
) -> None:
    for n in range(4):
        await db.broker.send("chat", f"m{n}")
        await answer_next(db)
    async with following(db, "chat", after="start") as follow:
        await follow.until("message m0")
        cursor = follow.cursor
    await database.query("DELETE FROM messages WHERE seq <= 3")
    await database.query("DELETE FROM inbox WHERE position <= 3")
    async with following(db, "chat", after=cursor) as follow:
        assert await follow.take(3) == ["message m3", "turn done", "idle"]


async def test_a_requeued_message_from_far_back_is_told(db: SessionsDB) -> None:
    await db.broker.send("chat", "dies")
    await bury_next(db)
    for n in range(3):
        await db.broker.send("chat", f"m{n}")
        await answer_next(db)
    async with following(db, "chat") as follow:
        await follow.take(1)
        [dead] = await db.broker.dead_letters("chat")
        await db.broker.requeue(dead.receipt)
        await answer_next(db, "at last")
        told = await follow.until("idle")
    assert [t for t in told if "started" not in t] == [
        "message dies", "message at last", "turn done", "idle",
    ]  # fmt: skip


async def test_events_are_parsed_from_their_wire_form(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    await stream(db, lease, "text", {"a": None})
    async with following(db, "chat", after="start") as follow:
        await follow.take(4)
        await commit(db, lease, "text")
        await follow.until("idle")
        await db.broker.end("chat")
        await db.store.delete("chat")
        await follow.until("deleted")
    assert {e.type for e in follow.seen} >= {"queued", "turn", "delta", "data", "message", "idle"}
    adapter = TypeAdapter(Event)
    for event in follow.seen:
        wire = event.model_dump_json()
        assert adapter.validate_json(wire) == event == event_from_json(wire)
        assert "null" not in wire.replace('{"a":null}', "")


async def test_a_turn_of_many_messages_is_told_before_its_end(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    await commit(db, lease, *(str(n) for n in range(250)))
    async with following(db, "chat", after="start") as follow:
        told = await follow.until("idle")
        assert told == [
            "message hello", *(f"message {n}" for n in range(250)), "turn done", "idle",
        ]  # fmt: skip
        cursor = follow.seen[100].cursor
    async with following(db, "chat", after=cursor) as follow:
        assert await follow.until("idle") == told[101:]


async def test_many_queued_and_cancelled_messages_are_told_once_each(db: SessionsDB) -> None:
    async with following(db, "chat") as follow:
        await follow.take(1)
        for n in range(250):
            await db.broker.send("chat", str(n))
        await db.broker.end("chat")
        told = await follow.until("ended")
    assert [t for t in told if t.startswith("queued")] == [f"queued {n}" for n in range(250)]
    assert cancelled_positions(follow) == list(range(1, 251))


async def test_the_pieces_of_a_released_turn_are_void(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    await stream(db, lease, "half")
    async with following(db, "chat") as follow:
        await follow.until("delta 0 half")
        await open_database_of(db).write(
            lambda c: lease_ends.release(c, WORKER, [lease]), wakes=("work",)
        )
        assert await follow.take(1) == ["reset"]
        [again] = await claim(db)
        await stream(db, again, "whole")
        assert await follow.take(2) == ["turn started", "delta 0 whole"]
        started = follow.seen[-2]
        assert started.type == "turn"
        assert (started.attempt, started.run) == (1, again.epoch)


async def test_the_turn_of_a_dead_worker_has_failed(db: SessionsDB, database: Database) -> None:
    await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    await stream(db, lease, "half")
    async with following(db, "chat") as follow:
        await follow.until("delta 0 half")
        await expire_leases(database)
        await open_database_of(db).write(
            lambda c: expiry.reap(c, namespaces=None, max_attempts=5), wakes=("work",)
        )
        assert await follow.take(2) == ["reset", "turn failed"]
        failed = follow.seen[-1]
        assert failed.type == "turn"
        assert failed.retry_at is None
        assert (failed.error or "").startswith("LeaseExpired")


async def test_a_cursor_of_a_state_that_a_backup_took_back_is_rewritten(
    db: SessionsDB, database: Database
) -> None:
    for n in range(2):
        await db.broker.send("chat", f"m{n}")
        await answer_next(db)
    async with following(db, "chat", after="start") as follow:
        await follow.until("idle")
        cursor = follow.cursor
    for statement in (
        "DELETE FROM messages WHERE seq > 1",
        "DELETE FROM inbox WHERE position > 1",
        "UPDATE sessions SET last_seq = 1",
        "UPDATE mailboxes SET head = 2, tail = 1",
    ):
        await database.query(statement)
    async with following(db, "chat", after=cursor) as follow:
        assert await follow.take(1) == ["rewritten"]
        await db.broker.send("chat", "again")
        await answer_next(db)
        told = await follow.until("idle")
    assert [t for t in told if "started" not in t] == [
        "queued again", "message again", "turn done", "idle",
    ]  # fmt: skip


async def test_a_reopened_session_is_idle(db: SessionsDB) -> None:
    async with following(db, "chat") as follow:
        await follow.take(1)
        await db.broker.end("chat")
        assert await follow.take(1) == ["ended"]
        await db.broker.reopen("chat")
        assert await follow.take(1) == ["idle"]


async def test_a_session_that_has_ended_is_idle_first(db: SessionsDB) -> None:
    await db.broker.end("chat")
    async with following(db, "chat") as follow:
        assert await follow.take(2) == ["idle", "ended"]


async def test_a_follower_far_behind_is_told_every_end_before_later_ones(db: SessionsDB) -> None:
    """The end of a later turn was told first, and all ends that were not read yet were lost."""
    async with following(db, "chat") as follow:
        await follow.take(1)
        cursor = follow.cursor
    for number in range(250):
        await db.broker.send("chat", str(number))
    await db.broker.end("chat")
    await db.broker.reopen("chat")
    await db.broker.send("chat", "last")
    await answer_next(db, "yes")
    async with following(db, "chat", after=cursor) as follow:
        told = await follow.until("turn done")
    assert told[:250] == [f"queued {number}" for number in range(250)]
    *cancelled, last, reply, done = told[251:]
    assert set(cancelled) == {"turn cancelled"}
    assert (last, reply, done) == ("message last", "message yes", "turn done")
    assert cancelled_positions(follow) == list(range(1, 251))


async def test_the_end_of_a_message_without_a_reply_is_told_in_its_place(db: SessionsDB) -> None:
    """The death came before the messages and ends of the turns before it, on the next page."""
    async with following(db, "chat") as follow:
        await follow.take(1)
        cursor = follow.cursor
    for number in range(70):
        await db.broker.send("chat", str(number))
        await answer_next(db, f"re {number}")
    await db.broker.send("chat", "dies")
    await bury_next(db)
    async with following(db, "chat", after=cursor) as follow:
        told = await follow.until("turn dead")
    told = [one for one in told if not one.startswith("queued")]
    for number in range(70):
        turn = [f"message {number}", f"message re {number}", "turn done"]
        assert told[3 * number : 3 * number + 3] == turn
    assert told[210:] == ["turn dead"]
