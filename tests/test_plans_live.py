"""The rows that followers read, beside long inboxes and transcripts and many sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.operations import joining, lease_ends
from sessionsdb.operations.inbox_types import Fail
from tests.support.following import following, stream
from tests.support.plans import Watch, explain_everything, plans_are_in, watched
from tests.support.turns import WORKER, claim

FINISHED = 20_000
SESSIONS = 3_000

Opened = tuple[SessionsDB, Watch]


@pytest.fixture
async def opened(database: Database) -> AsyncIterator[Opened]:
    """A session with 20,000 turns, and 3,000 others."""
    numbers = (
        "WITH RECURSIVE numbers(n) AS"
        " (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"
    )
    time = "'2026-01-01 00:00:00.000000'"
    sessions = numbers.format(count=SESSIONS)
    await database.query(
        "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active)"
        f" {sessions} SELECT 'default', 's' || n, 'c', 'p', {time}, {time}, {time} FROM numbers"
    )
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id) SELECT namespace, id FROM sessions"
    )
    await database.query(
        f"UPDATE sessions SET last_seq = {2 * FINISHED}, version = {FINISHED},"
        f" message_count = {2 * FINISHED} WHERE id = 's1'"
    )
    await database.query(
        f"UPDATE mailboxes SET head = {FINISHED + 1}, tail = {FINISHED} WHERE session_id = 's1'"
    )
    turns = numbers.format(count=FINISHED)
    await database.query(
        "INSERT INTO inbox (namespace, session_id, position, status, content, enqueued_at,"
        f" finished_at, epoch, attempts, first_seq, last_seq) {turns}"
        f" SELECT 'default', 's1', n, 'done', 'hello', {time}, {time}, n, 1, 2 * n - 1, 2 * n"
        " FROM numbers"
    )
    await database.query(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)"
        f" {numbers.format(count=2 * FINISHED)}"
        " SELECT 'default', 's1', n, CASE WHEN n % 2 = 1 THEN 'user' ELSE 'assistant' END,"
        f" 'words', {time}, (n + 1) / 2 FROM numbers"
    )
    await database.query(
        "INSERT INTO pieces (namespace, session_id, epoch, generation, number, start, written_at)"
        f" {turns} SELECT 'default', 's2', 1, 0, n, 0, {time} FROM numbers"
    )
    await database.query("ANALYZE")
    await explain_everything(database)
    async with watched(database) as (db, watch):
        yield db, watch


async def assert_frugal(watch: Watch, *, rows: int) -> None:
    await plans_are_in()
    assert watch.plans
    scans = [
        scan for plan in watch.plans for scan in plan.scans
        if scan not in ("SCAN r VIRTUAL TABLE INDEX 1:", "SCAN x")
        and not scan.startswith("SCAN anon_")  # the mailboxes that were asked for
    ]  # fmt: skip
    assert not scans, str(watch)
    assert watch.rows_read <= rows, str(watch)


async def test_a_turn_that_takes_messages_and_fails_reads_the_unfinished_ones(
    opened: Opened,
) -> None:
    db, watch = opened
    write = open_database_of(db).runner.write
    for number in range(3):
        await db.broker.send("s1", f"message {number}")
    [lease] = await claim(db)
    watch.clear()
    joined = await write(partial(joining.join, worker=WORKER, lease=lease, limit=1))
    assert len(joined) == 1
    await write(
        partial(joining.give_back, worker=WORKER, lease=lease, positions=[joined[0].position])
    )
    failure = Fail(lease, "Boom: it broke", retry_in=None)
    assert await write(partial(lease_ends.fail, worker=WORKER, failures=[failure])) == [True]
    await assert_frugal(watch, rows=100)


async def test_a_follower_begins_at_the_end_of_a_long_session(opened: Opened) -> None:
    db, watch = opened
    async with following(db, "s1") as follow:
        watch.clear()
        assert await follow.take(1) == ["idle"]
        await assert_frugal(watch, rows=20)


async def test_a_follower_reads_a_page_of_what_it_missed(opened: Opened) -> None:
    db, watch = opened
    async with following(db, "s1", after=FINISHED) as follow:
        watch.clear()
        await follow.take(100)
        await plans_are_in()
        assert watch.rows_read <= 2_000, str(watch)


async def test_a_turn_costs_a_follower_what_it_changed(opened: Opened) -> None:
    db, watch = opened
    async with following(db, "s1") as follow:
        await follow.take(1)
        await db.broker.send("s1", "new")
        await follow.take(1)
        [lease] = await claim(db)
        await follow.until("turn started")
        await stream(db, lease, *("x" for _ in range(300)))
        told = ""
        while len(told) < 300:
            event = await follow.next()
            assert event.type == "delta"
            told += event.text
        watch.clear()
        await stream(db, lease, "y", first=300, start=300)
        await follow.until("delta 300 y")
        await assert_frugal(watch, rows=40)


async def test_a_look_reads_three_rows_a_session(opened: Opened) -> None:
    db, watch = opened
    async with AsyncExitStack() as stack:
        follows = [await stack.enter_async_context(following(db, f"s{n}")) for n in range(100, 200)]
        for follow in follows:
            await follow.take(1)
        watch.clear()
        await db.broker.send("s100", "wakes all")
        await follows[0].take(1)
        await assert_frugal(watch, rows=100 * 4 + 100)
