"""A worker whose claims fail waits longer after each failure, whatever wakes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.runtime.database_access import WORK
from tests.support.refusal import break_claims, mend
from tests.support.waiting import until
from tests.support.work import running


async def reply(turn: Turn) -> str:
    return "ok"


@asynccontextmanager
async def hints_of_others(database: Database, often: bool) -> AsyncIterator[None]:
    """Tell of work again and again from another handle, if ``often``."""

    async def tell(other: SessionsDB) -> None:
        while often:
            open_database_of(other).wake((WORK,))
            await asyncio.sleep(0.01)

    async with SessionsDB(database.url) as other:
        await other.broker.list()
        task = asyncio.create_task(tell(other))
        yield
        task.cancel()
        await asyncio.wait((task,))


@pytest.mark.parametrize("often", [False, True], ids=["alone", "hints"])
async def test_no_wake_up_ends_the_pause_after_a_failed_claim(
    db: SessionsDB, database: Database, often: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await db.broker.register("chat", channel="test", peer="somebody")
    await break_claims(database)
    receipt = await db.broker.send("chat", "a")
    began = time.monotonic()
    async with hints_of_others(database, often), running(db, reply):
        await until(lambda: caplog.text.count("the database fails, trying again in") >= 5)
        # The first four pauses are at least 0.1, 0.2, 0.4 and 0.8 s.
        assert time.monotonic() - began > 1.4
        await mend(database, "mailboxes")
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"


async def test_a_stop_ends_the_pause_after_a_failed_claim(
    db: SessionsDB, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await db.broker.register("chat", channel="test", peer="somebody")
    await break_claims(database)
    await db.broker.send("chat", "a")
    async with running(db, reply) as worker:
        await until(lambda: caplog.text.count("the database fails, trying again in") >= 5)
        began = time.monotonic()
        await worker.stop(grace=0)
        assert time.monotonic() - began < 1.0  # the fifth pause is at least 1.6 s
