"""The report views know forks, open questions, schedules, and the tokens of all attempts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from devtools.databases import Database
from sessionsdb import Backoff, Question, Reply, SessionsDB, SpawnRequest, Turn
from sessionsdb.reports.catalogue import ACTIVITY, INBOX, LATENCY, SESSIONS, TREE, TURNS, View
from tests.support.live import Hanging
from tests.support.reporting import viewed
from tests.support.waiting import until
from tests.support.work import SOON, running

HOUR = timedelta(hours=1)


async def row_of(database: Database, view: View, **key: str) -> dict[str, Any]:
    [row] = [
        row
        for row in await viewed(database, view)
        if all(row[name] == value for name, value in key.items())
    ]
    return row


async def asks(turn: Turn) -> Reply | str:
    return Reply("?", ask=Question(prompt="Go on?")) if turn.answer is None else "on we go"


async def test_a_held_session_is_no_retry_and_tells_since_when(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("asks", channel="cli", peer="ada")
    await db.broker.send("asks", "go")
    await db.worker(asks).run_until_idle()
    ago = "datetime('now', '-2 hours') || '.000000'"
    if database.kind == "postgresql":
        ago = "now() - interval '2 hours'"
    await database.query(f"UPDATE questions SET asked_at = {ago}")
    session = await row_of(database, SESSIONS, session_id="asks")
    assert session["state"] == "held"
    assert (datetime.now(UTC) - session["held_at"]) >= 2 * HOUR - timedelta(seconds=2)
    assert 7_198 <= session["held_seconds"] < 7_300
    inbox = await row_of(database, INBOX, channel="cli")
    assert (inbox["held"], inbox["retrying"], inbox["sessions"]) == (1, 0, 0)
    assert 7_198 <= inbox["held_seconds"] < 7_300
    await db.broker.send("asks", "behind the question")
    inbox = await row_of(database, INBOX, channel="cli")
    assert (inbox["held"], inbox["sessions"], inbox["pending"]) == (1, 1, 1)
    [question] = await db.broker.questions()
    await db.broker.answer(question.id, "yes")
    session = await row_of(database, SESSIONS, session_id="asks")
    assert (session["state"], session["held_at"], session["held_seconds"]) == ("ready", None, None)
    assert (await row_of(database, INBOX, channel="cli"))["held"] == 0


async def test_schedules_that_wait_and_that_are_late_are_counted(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("later", channel="web", peer="ada")
    now = datetime.now(UTC)
    await db.broker.schedule("later", "in a day", at=now + 24 * HOUR)
    session = await row_of(database, SESSIONS, session_id="later")
    assert (session["schedules"], session["late_seconds"]) == (1, None)
    inbox = await row_of(database, INBOX, channel="web")
    assert (inbox["schedules"], inbox["due"], inbox["late_seconds"]) == (1, 0, None)
    assert (inbox["sessions"], inbox["pending"], inbox["held"]) == (0, 0, 0)
    await db.broker.schedule("later", "an hour ago", at=now - HOUR)
    await db.broker.schedule("later", "two hours ago", at=now - 2 * HOUR)
    session = await row_of(database, SESSIONS, session_id="later")
    assert session["schedules"] == 3
    assert 7_200 <= session["late_seconds"] < 7_300
    inbox = await row_of(database, INBOX, channel="web")
    assert (inbox["schedules"], inbox["due"]) == (3, 2)
    assert 7_200 <= inbox["late_seconds"] < 7_300


async def test_a_fork_tells_its_source(db: SessionsDB, database: Database) -> None:
    await db.store.save("source", [{"role": "user", "content": "hello"}])
    fork = await db.broker.fork("source")
    for view in (SESSIONS, TREE):
        assert (await row_of(database, view, session_id=fork.id))["forked_from"] == "source"
        assert (await row_of(database, view, session_id="source"))["forked_from"] is None


async def test_the_tokens_of_failed_attempts_count(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> str:
        turn.usage(input_tokens=10, output_tokens=1)
        if turn.text == "dead" or turn.attempt == 1:
            raise ValueError("no")
        return "done"

    await db.broker.register("root", channel="cli", peer="ada")
    child = (await db.broker.spawn("root", SpawnRequest(prompt="dead"))).id
    await db.broker.send(child, "done at the second attempt")
    await db.worker(handler, max_attempts=2, retry=SOON).run_until_idle()
    turns = [row for row in await viewed(database, TURNS) if row["session_id"] == child]
    found = sorted((row["status"], row["input_tokens"]) for row in turns)
    assert found == [("dead", 20), ("done", 20)]
    session = await row_of(database, SESSIONS, session_id=child)
    assert (session["input_tokens"], session["output_tokens"], session["turns"]) == (40, 4, 1)
    tree = await row_of(database, TREE, session_id="root")
    assert (tree["input_tokens"], tree["subtree_input_tokens"]) == (0, 40)
    assert (tree["subtree_output_tokens"], tree["subtree_turns"]) == (4, 1)


async def test_the_tokens_of_a_stopped_turn_count_and_it_is_no_turn(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    receipt = await db.broker.send("chat", "go")
    hanging = Hanging()

    async def is_kept() -> bool:
        return await database.query("SELECT input_tokens FROM inbox") == [(10,)]

    async with running(db, hanging, lease_seconds=3_600):
        turn = await hanging.begun()
        turn.usage(input_tokens=10, output_tokens=1)
        await db.broker.cancel(receipt)  # it keeps the question, so the message has a first_seq
        await until(is_kept)
    for view in (SESSIONS, TREE):
        row = await row_of(database, view, session_id="chat")
        assert (row["turns"], row["input_tokens"], row["output_tokens"]) == (0, 10, 1)
    [row] = await viewed(database, TURNS)
    assert (row["status"], row["stopped_by"], row["input_tokens"]) == ("cancelled", "cancel", 10)
    assert row["first_seq"] is not None
    assert 0 <= row["work_seconds"] <= row["total_seconds"]
    [day] = await viewed(database, ACTIVITY)
    assert (day["turns"], day["dead"], day["sessions"]) == (0, 0, 1)
    assert (day["input_tokens"], day["output_tokens"]) == (10, 1)
    assert await viewed(database, LATENCY) == []


async def test_a_message_that_was_stopped_counts_as_handled_if_a_turn_had_begun(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> str:
        turn.usage(input_tokens=10, output_tokens=1)
        raise ValueError("no")

    async def have_failed() -> bool:
        rows = await database.query("SELECT status, attempts, input_tokens FROM inbox")
        return rows == [("pending", 1, 10)] * 2

    for id in ("interrupted", "ended", "never claimed"):
        await db.broker.register(id, channel="cli", peer="ada")
    for id in ("interrupted", "ended"):
        await db.broker.send(id, "go")
    async with running(db, handler, retry=Backoff(first=3_600.0)):
        await until(have_failed)
    await db.broker.interrupt("interrupted")
    await db.broker.end("ended")
    await db.broker.cancel(await db.broker.send("never claimed", "go"))
    rows = {row["session_id"]: row for row in await viewed(database, TURNS)}
    assert rows.keys() == {"interrupted", "ended"}
    for id, stopped_by in (("interrupted", "interrupt"), ("ended", "end")):
        row = rows[id]
        assert (row["status"], row["stopped_by"]) == ("cancelled", stopped_by)
        assert (row["input_tokens"], row["output_tokens"]) == (10, 1)
        assert row["error"].startswith("ValueError: no")
    [day] = await viewed(database, ACTIVITY)
    assert (day["turns"], day["input_tokens"], day["output_tokens"]) == (0, 20, 2)


async def test_the_tokens_of_a_batch_that_was_stopped_count_once(
    db: SessionsDB, database: Database
) -> None:
    async def is_kept() -> bool:
        return bool(await database.query("SELECT 1 FROM inbox WHERE input_tokens IS NOT NULL"))

    await db.broker.register("chat", channel="cli", peer="ada")
    for text in ("one", "two"):
        await db.broker.send("chat", text)
    hanging = Hanging()
    async with running(db, hanging, batch=2, lease_seconds=3_600):
        turn = await hanging.begun()
        turn.usage(input_tokens=10, output_tokens=1)
        await db.broker.interrupt("chat")
        await until(is_kept)
    rows = await viewed(database, TURNS)
    assert [row["stopped_by"] for row in rows] == ["interrupt"] * 2
    assert sum(row["input_tokens"] or 0 for row in rows) == 10
    [day] = await viewed(database, ACTIVITY)
    assert (day["turns"], day["input_tokens"]) == (0, 10)
