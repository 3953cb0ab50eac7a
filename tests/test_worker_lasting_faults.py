"""A database that fails for good at one session, and serves all others."""

from __future__ import annotations

import asyncio

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from tests.support.refusal import break_replies, break_session, mend
from tests.support.waiting import until
from tests.support.work import SOON, running


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    for name in ("bad", "good"):
        await db.broker.register(name, channel="test", peer="somebody")
    return db


async def reply(turn: Turn) -> str:
    return "ok"


async def test_a_commit_that_fails_for_good_kills_its_message_and_frees_the_slot(
    db: SessionsDB, database: Database
) -> None:
    await break_replies(database, "bad")
    bad = await db.broker.send("bad", "a")
    good = await db.broker.send("good", "b")
    worker = db.worker(reply, lease_seconds=0.6, max_attempts=2, retry=SOON, concurrency=1)
    async with asyncio.timeout(20):
        assert await worker.run_until_idle() == 1
    outcome = await db.broker.outcome(bad)
    assert (outcome.status, outcome.attempts) == ("dead", 2)
    assert outcome.error is not None
    assert "the database failed" in outcome.error
    assert (await db.broker.outcome(good)).status == "done"


async def test_a_failure_that_can_not_be_recorded_lets_the_lease_run_out(
    db: SessionsDB, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await db.broker.send("bad", "a")

    async def handler(turn: Turn) -> str:
        if turn.session.id == "bad" and turn.attempt == 1:
            await break_session(database, "bad")
        return "ok"

    async with running(db, handler, lease_seconds=0.6, retry=SOON, concurrency=1):
        await until(lambda: db_is_broken(caplog))
        good = await db.broker.send("good", "b")
        assert (await db.broker.wait(good, timeout=20)).status == "done"
        assert (await db.broker.outcome(bad)).status == "running"
        await mend(database, "inbox")
        outcome = await db.broker.wait(bad, timeout=20)
    assert (outcome.status, outcome.attempts) == ("done", 2)


def db_is_broken(caplog: pytest.LogCaptureFixture) -> bool:
    return "can't commit a turn, trying again" in caplog.text


async def test_a_fault_shorter_than_a_lease_costs_no_attempt(
    db: SessionsDB, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await break_replies(database, "bad")
    receipt = await db.broker.send("bad", "a")
    async with running(db, reply, lease_seconds=30):
        await until(lambda: caplog.text.count("can't commit a turn, trying again") == 2)
        await mend(database, "messages")
        outcome = await db.broker.wait(receipt, timeout=20)
    assert (outcome.status, outcome.attempts) == ("done", 1)
