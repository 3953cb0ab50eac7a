"""A value that other code has damaged: its own calls fail with its name, all others go on."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Awaitable

import pytest
from sqlalchemy import Connection
from sqlalchemy import text as sql

from devtools.databases import Database
from sessionsdb import DamagedValue, Outcome, SessionsDB, SpawnRequest, StorageError, Turn
from sessionsdb.admin.doctor import examine
from sessionsdb.database import open_database_of
from sessionsdb.events import Event
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Commit
from sessionsdb.runtime.database_access import DONE
from tests.support.command_line import CommandLine
from tests.support.following import following, stream
from tests.support.turns import WORKER, claim, waits_under_way
from tests.support.waiting import until
from tests.support.work import SOON, running

RICH = {"role": "user", "content": [{"type": "text", "text": "hello"}]}


async def damage(database: Database, table: str, column: str, id: str, text: str = "{oops") -> None:
    key = "id" if table == "sessions" else "session_id"
    await database.query(f"UPDATE {table} SET {column} = '{text}' WHERE {key} = '{id}'")


async def answer(turn: Turn) -> str:
    return f"re {turn.text}"


def reply_of(outcome: Outcome) -> str | None:
    return None if outcome.reply is None else outcome.reply.content


async def register(db: SessionsDB, *ids: str) -> None:
    for id in ids:
        await db.broker.register(id, channel="cli", peer="ada")


async def test_a_damaged_reply_holds_up_no_wait_for_another_message(
    database: Database, db: SessionsDB
) -> None:
    ids = ("bad", "good", "better")
    await register(db, *ids)
    receipts = {id: await db.broker.send(id, "hello") for id in ids}
    waits = {id: asyncio.create_task(db.broker.wait(receipts[id], timeout=60)) for id in ids}
    await until(lambda: waits_under_way(db) == 3)

    def commit_and_damage(connection: Connection) -> None:
        reply = StoredMessage("assistant", "re", None)
        turns = [
            Commit(lease, [*(one.message for one in lease.deliveries), reply]) for lease in leases
        ]
        assert mailbox.commit(connection, worker=WORKER, turns=turns) == [True] * 3
        connection.execute(sql("UPDATE messages SET extra = '{oops' WHERE session_id = 'bad'"))

    async with SessionsDB(database.url) as other:
        leases = await claim(other, slots=3)
        await open_database_of(other).write(commit_and_damage, wakes=(DONE,))
        for id in ("good", "better"):
            outcome = await asyncio.wait_for(waits[id], 20)
            assert (outcome.status, reply_of(outcome)) == ("done", "re")
        with pytest.raises(DamagedValue):
            await asyncio.wait_for(waits["bad"], 20)


@pytest.mark.parametrize("text", ["{oops", "[1]", "[" * 100_000], ids=["half", "array", "deep"])
@pytest.mark.parametrize("batch", [1, 8])
async def test_a_damaged_message_dies_alone_and_its_worker_goes_on(
    database: Database, db: SessionsDB, text: str, batch: int
) -> None:
    await register(db, "bad", "good")
    bad = await db.broker.send("bad", RICH)
    behind = await db.broker.send("bad", "behind it")
    await damage(database, "inbox", "payload", "bad", text)
    await database.query("UPDATE inbox SET payload = NULL WHERE position = 2")
    good = await db.broker.send("good", RICH)

    await db.worker(answer, batch=batch, max_attempts=2, retry=SOON).run_until_idle()

    assert reply_of(await db.broker.outcome(good)) == "re hello"
    assert reply_of(await db.broker.outcome(behind)) == "re behind it"
    dead = await db.broker.outcome(bad)
    assert dead.status == "dead"
    assert "DamagedValue" in str(dead.error)
    assert "doctor --values" in str(dead.error)


@pytest.mark.parametrize("everywhere", [True, False])
async def test_a_mailbox_without_the_message_that_made_it_ready_holds_up_no_other(
    database: Database, db: SessionsDB, everywhere: bool
) -> None:
    """It has been ready longest, and the worker has one slot."""
    beside = db.in_namespace("other") if everywhere else db
    await register(db, "bad")
    await register(beside, "good")
    await db.broker.send("bad", "was deleted")
    good = await beside.broker.send("good", "hello")
    await database.query("DELETE FROM inbox WHERE session_id = 'bad'")
    async with running(db, answer, concurrency=1, namespaces="*" if everywhere else None):
        assert (await beside.broker.wait(good, timeout=20)).status == "done"
        behind = await db.broker.send("bad", "behind it")
        assert reply_of(await db.broker.wait(behind, timeout=20)) == "re behind it"
    assert (await examine(db, fix=True)).healthy


async def test_a_damaged_message_is_answered_once_it_is_repaired(
    database: Database, db: SessionsDB
) -> None:
    await register(db, "bad")
    bad = await db.broker.send("bad", RICH)
    [(payload,)] = await database.query("SELECT payload FROM inbox")
    await damage(database, "inbox", "payload", "bad")
    await db.worker(answer, max_attempts=1).run_until_idle()
    await database.query(f"UPDATE inbox SET payload = '{payload}'")
    await db.broker.requeue(bad)
    await db.worker(answer).run_until_idle()
    assert reply_of(await db.broker.outcome(bad)) == "re hello"
    assert await db.store.load("bad") == [RICH, {"role": "assistant", "content": "re hello"}]


async def test_a_damaged_message_does_not_join_a_running_turn(
    database: Database, db: SessionsDB
) -> None:
    await register(db, "chat")
    started, go_on = asyncio.Event(), asyncio.Event()

    async def join(turn: Turn) -> str:
        if turn.text == "first":
            started.set()
            await go_on.wait()
            return f"joined: {len(await turn.take_incoming())}"
        return "alone"

    first = await db.broker.send("chat", "first")
    async with running(db, join, max_attempts=1):
        await started.wait()
        bad = await db.broker.send("chat", RICH)
        await database.query("UPDATE inbox SET payload = '{oops' WHERE position = 2")
        go_on.set()
        assert reply_of(await db.broker.wait(first, 10)) == "joined: 0"
        assert (await db.broker.wait(bad, 10)).status == "dead"


@pytest.mark.parametrize("column", ["metadata", "tools"])
async def test_a_session_with_damaged_settings_fails_by_its_own_calls_only(
    database: Database, db: SessionsDB, column: str
) -> None:
    await register(db, "bad", "good")
    await damage(database, "sessions", column, "bad")
    calls = [
        db.broker.get("bad"),
        db.broker.list(details=True),
        db.broker.update("bad", model="m"),
        db.broker.fork("bad"),
    ]
    if column == "tools":
        calls.append(db.broker.spawn("bad", SpawnRequest(prompt="go")))
    for call in calls[:3]:
        with pytest.raises(DamagedValue, match=f"{column} of session bad is no JSON"):
            await call
    for call in calls[3:]:
        with pytest.raises(DamagedValue, match="it is no JSON"):
            await call
    # Also in one batch with calls about a sound session.
    answers = await asyncio.gather(
        *(db.broker.update(id, model="m") for id in ("good", "bad", "good")),
        return_exceptions=True,
    )
    assert [type(one).__name__ for one in answers] == [
        "SessionDetails",
        "DamagedValue",
        "SessionDetails",
    ]
    assert [one.id for one in await db.broker.list()] == ["bad", "good"]
    assert await database.query("SELECT id, model FROM sessions ORDER BY id") == [
        ("bad", None),
        ("good", "m"),
    ]


async def test_a_damaged_transcript_fails_by_its_own_reads_only(
    database: Database, db: SessionsDB
) -> None:
    for id in ("bad", "good"):
        await register(db, id)
        await db.broker.send(id, RICH, author="ada")
    await db.worker(answer).run_until_idle()
    await damage(database, "messages", "extra", "bad", "[1]")
    await damage(database, "messages", "payload", "bad")
    async with SessionsDB(database.url) as fresh:
        for read in (fresh.store.load, fresh.broker.history):
            answers = await asyncio.gather(
                *(read(id) for id in ("good", "bad", "good")), return_exceptions=True
            )
            kinds = [isinstance(one, DamagedValue) for one in answers]
            assert kinds == [False, True, False], answers


async def test_a_follower_of_a_damaged_session_gets_the_error_and_others_their_events(
    database: Database, db: SessionsDB
) -> None:
    for id in ("bad", "good"):
        await register(db, id)
        await db.broker.send(id, "hello", author="ada")
    await damage(database, "inbox", "extra", "bad")

    async def first(id: str) -> object:
        async for event in db.broker.follow(id, after="start"):
            return event.type
        return None

    answers = await asyncio.gather(first("bad"), first("good"), return_exceptions=True)
    assert isinstance(answers[0], DamagedValue)
    assert answers[1] == "queued"


async def test_a_damaged_piece_ends_the_followers_of_its_session_only(
    database: Database, db: SessionsDB
) -> None:
    ids = ("bad", "good")
    await register(db, *ids)
    async with following(db, "bad") as bad, following(db, "good") as good:
        assert [await bad.take(1), await good.take(1)] == [["idle"], ["idle"]]
        for id in ids:
            await db.broker.send(id, "hello")
        leases = {lease.session.id: lease for lease in await claim(db, slots=2)}
        for follow in (bad, good):
            await follow.until("turn started")
        await database.query(
            "INSERT INTO pieces (namespace, session_id, epoch, generation, number, start, kind,"
            f" data, written_at) VALUES ('default', 'bad', {leases['bad'].epoch}, 0, 0, 0, 'tool',"
            " '{oops', '2024-01-01 00:00:00.000000')"
        )
        with pytest.raises(DamagedValue):
            await bad.next()
        await stream(db, leases["good"], "goes on")
        assert await good.take(1) == ["delta 0 goes on"]
    [finding] = (await examine(db, values=True)).findings
    assert finding.examples == [f"pieces default/bad/{leases['bad'].epoch}/0/0: data is no JSON"]


async def test_the_search_index_goes_on_behind_a_damaged_message(
    database: Database, db: SessionsDB
) -> None:
    await db.store.append("bad", [RICH])
    await db.store.append("good", [RICH])
    await damage(database, "messages", "payload", "bad")
    await db.index_search()
    assert [hit.session_id for hit in await db.broker.search("hello")] == ["good"]


async def test_doctor_names_each_damaged_value_and_only_with_its_option(
    database: Database, db: SessionsDB
) -> None:
    await db.store.append("bad", [RICH] * 150)
    await db.store.append("good", [RICH] * 150)
    await register(db, "settings")
    await database.query("UPDATE sessions SET metadata = '[]', tools = '{}' WHERE id = 'settings'")
    await database.query("UPDATE messages SET payload = '{oops' WHERE seq = 120")
    assert (await examine(db)).healthy
    report = await examine(db, values=True)
    [finding] = report.findings
    assert (finding.check, finding.count, report.healthy) == ("damaged-values", 4, False)
    assert finding.examples == [
        "sessions default/settings: tools is no JSON array",
        "sessions default/settings: metadata is no JSON object",
        "messages default/bad/120: payload is no JSON",
        "messages default/good/120: payload is no JSON",
    ]


async def test_the_command_line_says_where_to_look(database: Database, db: SessionsDB) -> None:
    await register(db, "bad")
    await damage(database, "sessions", "metadata", "bad")
    run = CommandLine(database.url)
    shown = await asyncio.to_thread(run, "update", "bad", "--model", "m")
    _, _, advice = shown.failed("stored value is damaged").rpartition("with: sessionsdb ")
    found = await asyncio.to_thread(CommandLine("sqlite:///other.db"), *shlex.split(advice))
    assert "sessions default/bad: metadata is no JSON" in found.stdout


# ---- texts that are not UTF-8 --------------------------------------------------------------------

NO_UTF8 = "CAST(x'ff' AS TEXT)"
only_on_sqlite = pytest.mark.parametrize("kind", ["sqlite"])
"""PostgreSQL stores no text that is not UTF-8."""


async def kinds_of(*calls: Awaitable[object]) -> list[str]:
    """Run calls at the same time, and tell which fail."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all("UTF-8" in str(one) for one in answers if isinstance(one, StorageError))
    return ["bad" if isinstance(one, StorageError) else type(one).__name__ for one in answers]


@only_on_sqlite
async def test_a_text_that_is_no_utf8_fails_by_its_own_calls_only(
    database: Database, db: SessionsDB
) -> None:
    ids = ("first", "bad", "good")
    await register(db, *ids)
    await db.broker.send("bad", "hello", idempotency_key="k")
    await database.query(f"UPDATE sessions SET system = {NO_UTF8} WHERE id = 'bad'")
    await database.query(f"UPDATE inbox SET fingerprint = {NO_UTF8}")
    changed = await kinds_of(*(db.broker.update(id, model="m") for id in ids))
    assert changed == ["SessionDetails", "bad", "SessionDetails"]
    sent = await kinds_of(*(db.broker.send(id, "hello", idempotency_key="k") for id in ids))
    assert sent == ["Receipt", "bad", "Receipt"]


@only_on_sqlite
async def test_a_reply_that_is_no_utf8_holds_up_no_wait_for_another_message(
    database: Database, db: SessionsDB
) -> None:
    ids = ("first", "bad", "good")
    await register(db, *ids)
    receipts = [await db.broker.send(id, "hello") for id in ids]
    # The waits of before the turns are answered by one poll, those of after by one first look.
    waits = [asyncio.create_task(db.broker.wait(receipt, timeout=60)) for receipt in receipts]
    await until(lambda: waits_under_way(db) == 3)
    await database.query(
        "CREATE TRIGGER damage AFTER INSERT ON messages"
        " WHEN new.session_id = 'bad' AND new.role = 'assistant' BEGIN"
        f" UPDATE messages SET content = {NO_UTF8} WHERE session_id = 'bad' AND seq = new.seq; END"
    )
    assert await db.worker(answer).run_until_idle() == 3
    assert await kinds_of(*waits) == ["Outcome", "bad", "Outcome"]
    again = (db.broker.wait(receipt, timeout=60) for receipt in receipts)
    assert await kinds_of(*again) == ["Outcome", "bad", "Outcome"]


@only_on_sqlite
async def test_a_follower_of_a_text_that_is_no_utf8_gets_the_error_and_others_their_events(
    database: Database, db: SessionsDB
) -> None:
    ids = ("first", "bad", "good")
    followers = []
    for id in ids:
        await db.store.append(id, [RICH])
        followers.append(db.broker.follow(id))
    # All have begun: an error of the database at large would have them wait for its end.
    assert [(await anext(one)).type for one in followers] == ["idle"] * 3

    async def second(follower: AsyncIterator[Event]) -> Event:
        return await anext(follower)

    told = [asyncio.create_task(second(one)) for one in followers]
    async with db.engine.begin() as connection:  # the hub sees all three at once
        await connection.execute(
            sql(
                "INSERT INTO messages (namespace, session_id, seq, role, content, created_at)"
                " SELECT namespace, session_id, seq + 1, role,"
                f" CASE session_id WHEN 'bad' THEN {NO_UTF8} ELSE content END, created_at"
                " FROM messages"
            )
        )
        await connection.execute(
            sql(
                "UPDATE sessions SET last_seq = last_seq + 1, version = version + 1,"
                " message_count = message_count + 1"
            )
        )
    assert await kinds_of(*told) == ["MessageEvent", "bad", "MessageEvent"]
