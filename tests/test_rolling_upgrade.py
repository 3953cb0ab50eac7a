"""Old and new processes beside each other over a migration, on PostgreSQL.

A process compares revisions only when it opens the database. So a handle that is open before the
schema goes back one revision stands for a process of the version before: it has the tables of that
version under it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from devtools.databases import Database
from sessionsdb import Receipt, SchemaOutOfDate, SessionsDB
from sessionsdb.engine import migrations
from sessionsdb.handlers import echo
from sessionsdb.schema import VERSION_TABLE
from tests.support.schemas import downgrade, revision
from tests.support.waiting import until
from tests.support.work import running

# A revision whose tables the hot statements need breaks these tests. Then the changelog says that
# the processes of the version before must stop, and this is the last revision for which they need
# not.
BEFORE, AFTER = migrations.revisions()[-2:]

SESSIONS = 5


@pytest.fixture
def kind() -> str:
    return "postgresql"


@asynccontextmanager
async def sending(db: SessionsDB, name: str) -> AsyncIterator[list[Receipt]]:
    """Send messages one after the other during the block, each with a text of its own."""
    receipts: list[Receipt] = []

    async def send() -> None:
        for number in itertools.count():
            session = f"chat-{number % SESSIONS}"
            receipts.append(await db.broker.send(session, f"{name} {number}"))

    for number in range(SESSIONS):
        await db.broker.register(f"chat-{number}", channel="test", peer="p", exist_ok=True)
    task = asyncio.create_task(send())
    try:
        await more(receipts)
        yield receipts
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def more(receipts: list[Receipt]) -> None:
    enough = len(receipts) + 10
    await until(lambda: len(receipts) >= enough)


async def assert_each_was_handled_once(db: SessionsDB, receipts: list[Receipt]) -> None:
    outcomes = await asyncio.gather(*(db.broker.wait(receipt) for receipt in receipts))
    assert {outcome.status for outcome in outcomes} == {"done"}
    # A send whose caller was cancelled may have been made, too.
    sessions = await db.broker.list(details=True)
    assert sum(session.message_count for session in sessions) >= 2 * len(receipts)
    for session in sessions:
        history = [message.content for message in await db.broker.history(session.id, 10_000)]
        assert history[1::2] == [f"echo: {text}" for text in history[::2]]
        assert len(set(history)) == len(history)


async def test_workers_of_the_version_before_go_on_over_the_last_migration(
    database: Database,
) -> None:
    async with SessionsDB(database.url) as old:
        await downgrade(database, BEFORE)
        with pytest.raises(SchemaOutOfDate, match="sessionsdb migrate"):
            await SessionsDB(database.url).open()
        async with (
            running(old, echo),
            sending(old, "old") as receipts,
            SessionsDB(database.url, migrate=True) as new,
        ):
            assert await revision(database) == AFTER
            await more(receipts)
            async with running(new, echo), sending(new, "new") as others:
                await more(receipts)
            await assert_each_was_handled_once(new, [*receipts, *others])


async def test_running_workers_go_on_when_a_newer_version_adds_columns_and_indices(
    database: Database,
) -> None:
    async with SessionsDB(database.url) as old, running(old, echo), sending(old, "old") as receipts:
        for table in ("sessions", "messages", "mailboxes", "inbox"):
            await database.query(f"ALTER TABLE {table} ADD COLUMN future bigint DEFAULT 7")
            await database.query(f"CREATE INDEX ix_{table}_future ON {table} (future)")
            await more(receipts)
        await database.query(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        await more(receipts)
        await assert_each_was_handled_once(old, list(receipts))
    with pytest.raises(SchemaOutOfDate, match="9999"):
        await SessionsDB(database.url).open()
