"""reopen: an ended session takes messages again."""

from __future__ import annotations

import pytest

from devtools.databases import Database
from sessionsdb import Limits, SessionEnded, SessionsDB, SpawnDenied, UnknownSession
from tests.support.turns import answer_next, claim
from tests.support.work import running


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


async def test_a_reopened_session_takes_messages_again(db: SessionsDB) -> None:
    await db.broker.end("chat", reason="done")
    with pytest.raises(SessionEnded, match=r"call reopen\(\)"):
        await db.broker.send("chat", "a")
    details = await db.broker.reopen("chat")
    assert (details.id, details.ended_at, details.end_reason) == ("chat", None, None)
    assert await db.broker.get("chat") == details
    await db.broker.send("chat", "a")
    await answer_next(db, "A")
    assert [one.content for one in await db.broker.history("chat")] == ["a", "A"]
    assert [one.id for one in await db.broker.list()] == ["chat"]


async def test_a_live_session_is_left_as_it_is(db: SessionsDB) -> None:
    before = await db.broker.get("chat")
    assert await db.broker.reopen("chat") == before
    assert await db.broker.get("chat") == before


async def test_an_unknown_session_can_not_be_reopened(db: SessionsDB) -> None:
    with pytest.raises(UnknownSession, match="nobody"):
        await db.broker.reopen("nobody")


async def test_cancelled_messages_stay_cancelled(db: SessionsDB) -> None:
    waiting = await db.broker.send("chat", "a")
    await db.broker.end("chat")
    details = await db.broker.reopen("chat")
    assert (details.pending, details.running) == (0, False)
    assert (await db.broker.outcome(waiting)).status == "cancelled"
    assert await claim(db) == []


async def test_the_sessions_below_stay_ended(db: SessionsDB) -> None:
    await db.broker.register("child", channel="cli", peer="ada", parent="chat")
    await db.broker.end("chat", subtree=True)
    await db.broker.reopen("chat")
    assert (await db.broker.get("child")).ended_at is not None
    assert (await db.broker.get("chat")).ended_at is None


async def test_the_limit_of_children_holds_for_a_reopened_child(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(children=1)) as db:
        for id in ("first", "second"):
            await db.broker.register(id, channel="cli", peer="ada", parent="chat")
            await db.broker.end(id)
        await db.broker.reopen("first")
        with pytest.raises(SpawnDenied):
            await db.broker.reopen("second")
        assert (await db.broker.get("second")).ended_at is not None


async def test_a_worker_handles_what_is_sent_after_a_reopen(db: SessionsDB) -> None:
    async def answer(_turn: object) -> str:
        return "A"

    async with running(db, answer, poll_interval=3_600):
        await db.broker.end("chat")
        await db.broker.reopen("chat")
        receipt = await db.broker.send("chat", "a")
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"
