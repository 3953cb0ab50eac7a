"""The rows that the database reads for a call, with 100,000 rows in each table.

The database itself reports the plans of the statements that the package ran.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from devtools.databases import Database
from sessionsdb import ListOptions, Receipt, SessionsDB, Turn
from tests.support.plans import Watch, explain_everything, plans_are_in, watched

ROWS = 100_000
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def crowded(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database so large that a careless query shows."""
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        asyncio.run(crowd(database))
        yield database


async def crowd(database: Database) -> None:
    """100,000 sessions, s1 active first.

    The first half and every third have ended. s60001 to s80000 are a tree below s60000: its
    children are s60100, s60200, … and theirs are those behind them. Every 1,000th, beginning with
    s1, has the peer rare.

    100,000 messages, half of them in s50001 and the others spread; 100,000 inbox messages.
    """
    numbers = (
        "WITH RECURSIVE numbers(n) AS"
        f" (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {ROWS})"
    )
    if database.kind == "sqlite":
        time = "strftime('%Y-%m-%d %H:%M:%S.000000', 1704067200 + n, 'unixepoch')"
    else:
        time = "to_timestamp(1704067200 + n)"
    in_tree = "n > 60000 AND n <= 80000"
    await database.query(
        "INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer,"
        f" created_at, updated_at, last_active, ended_at, version, last_seq) {numbers}"
        " SELECT 'default', 's' || n,"
        f" CASE WHEN {in_tree} THEN CASE WHEN n % 100 = 0 THEN 's60000'"
        " ELSE 's' || (n - n % 100 + 100) END END,"
        f" CASE WHEN {in_tree} THEN 's60000' END,"
        f" CASE WHEN {in_tree} THEN CASE WHEN n % 100 = 0 THEN 1 ELSE 2 END ELSE 0 END,"
        f" 'cli', CASE WHEN n % 1000 = 1 THEN 'rare' ELSE 'ann' END, {time}, {time}, {time},"
        f" CASE WHEN n <= {ROWS // 2} OR n % 3 = 0 THEN {time} END, 0, 0 FROM numbers"
    )
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id) SELECT namespace, id FROM sessions"
    )
    await database.query(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)"
        f" {numbers} SELECT 'default',"
        " CASE WHEN n % 2 = 0 THEN 's50001' ELSE 's' || (50002 + n % 1000) END, n,"
        " CASE WHEN n % 4 < 2 THEN 'user' ELSE 'assistant' END,"
        f" 'content of message ' || n, {time}, n FROM numbers"
    )
    await database.query(
        "UPDATE sessions SET version = 1, last_seq = m.last_seq, message_count = m.message_count"
        " FROM (SELECT session_id, max(seq) AS last_seq, count(*) AS message_count FROM messages"
        " GROUP BY session_id) AS m WHERE id = m.session_id"
    )
    await database.query(
        "INSERT INTO inbox (namespace, session_id, position, status, content, enqueued_at,"
        f" finished_at, dead_at, first_seq, last_seq) {numbers}"
        " SELECT 'default', CASE WHEN n % 2 = 0 THEN 's50001' ELSE 's50002' END, n,"
        " CASE WHEN n % 50 = 0 THEN 'dead' ELSE 'done' END, 'content',"
        f" {time}, {time}, CASE WHEN n % 50 = 0 THEN {time} END, n - 2, n FROM numbers"
    )
    await database.query("ANALYZE")
    await explain_everything(database)


@pytest.fixture
async def opened(crowded: Database) -> AsyncIterator[tuple[SessionsDB, Watch]]:
    async with watched(crowded) as (db, watch):
        watch.clear()
        yield db, watch


async def assert_frugal(watch: Watch, *, rows: int) -> None:
    """Assert that nothing was sorted or scanned, and at most ``rows`` rows were read."""
    await plans_are_in()
    assert watch.plans
    assert [plan.sorts for plan in watch.plans if plan.sorts] == [], str(watch)
    assert [plan.scans for plan in watch.plans if plan.scans] == [], str(watch)
    assert watch.rows_read <= rows, str(watch)


Opened = tuple[SessionsDB, Watch]

# ---- transcripts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cursor", "first"),
    [
        ({}, 99_902),
        ({"before": 50_000}, 49_900),
        ({"after": 50_000}, 50_002),
        ({"after": 50_000, "before": 90_000}, 50_002),
    ],
    ids=["last", "before", "after", "between"],
)
async def test_a_page_of_history_reads_a_page(
    opened: Opened, cursor: dict[str, int], first: int
) -> None:
    db, watch = opened
    page = await db.broker.history("s50001", 50, **cursor)
    assert [message.seq for message in page] == list(range(first, first + 100, 2))
    await assert_frugal(watch, rows=50)


async def test_an_empty_page_of_history_reads_next_to_nothing(opened: Opened) -> None:
    db, watch = opened
    assert await db.broker.history("s50001", 50, after=ROWS) == []
    assert await db.broker.history("s50001", 0) == []
    assert await db.broker.history("s100000", 50) == []
    await assert_frugal(watch, rows=6)


@pytest.mark.parametrize(("name", "count"), [("s50001", ROWS // 2), ("s50003", 100)])
async def test_a_load_reads_one_transcript(opened: Opened, name: str, count: int) -> None:
    db, watch = opened
    for _ in range(2):  # the second one reads for being remembered
        watch.clear()
        loaded = await db.store.load(name)
        assert len(loaded or ()) == count
        await assert_frugal(watch, rows=count + 2)
    watch.clear()
    assert await db.store.load(name) == loaded
    await assert_frugal(watch, rows=4)


async def test_loads_of_many_callers_read_their_transcripts(opened: Opened) -> None:
    db, watch = opened
    names = ["s50003", *(f"s{n}" for n in range(50_005, 50_063, 2)), "no such session", "s1"]
    for _ in range(2):
        watch.clear()
        loaded = await asyncio.gather(*map(db.store.load, names))
        assert [len(one or ()) for one in loaded] == [100] * 30 + [0, 0]
        assert loaded[-2] is None
        await assert_frugal(watch, rows=3 * len(names) + sum(len(one or ()) for one in loaded))
    watch.clear()
    assert await asyncio.gather(*map(db.store.load, names)) == loaded
    await assert_frugal(watch, rows=4 * len(names))


async def test_a_version_reads_one_row(opened: Opened) -> None:
    db, watch = opened
    assert await db.store.version("s50001") == 1
    await assert_frugal(watch, rows=1)


# ---- lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1_000])
async def test_a_page_of_the_store_reads_only_its_own_rows_and_skipped_ones(
    opened: Opened, offset: int
) -> None:
    db, watch = opened
    page = await db.store.list_paginated(ListOptions(offset=offset, limit=50))
    assert [record.id for record in page] == [f"s{offset + i}" for i in range(1, 51)]
    await assert_frugal(watch, rows=offset + 50)


LIVE = [f"s{n}" for n in range(ROWS // 2 + 1, ROWS + 1) if n % 3]


async def test_a_page_of_live_sessions_reads_a_page_and_none_that_ended(opened: Opened) -> None:
    db, watch = opened
    page = await db.broker.list(limit=50)
    assert [summary.id for summary in page] == LIVE[:50]
    await assert_frugal(watch, rows=50)


async def test_the_next_page_reads_a_page(opened: Opened) -> None:
    db, watch = opened
    previous = await db.broker.list(limit=20_000)
    watch.clear()
    page = await db.broker.list(limit=50, after=previous[-1])
    assert [summary.id for summary in page] == LIVE[20_000:20_050]
    await assert_frugal(watch, rows=50)
    watch.clear()
    assert await db.broker.list(limit=50, after=previous[-1].id) == page
    await assert_frugal(watch, rows=51)


async def test_a_page_of_the_newest_reads_a_page(opened: Opened) -> None:
    db, watch = opened
    page = await db.broker.list(limit=50, newest_first=True)
    assert [summary.id for summary in page] == LIVE[:-51:-1]
    await assert_frugal(watch, rows=50)
    watch.clear()
    await db.broker.list(limit=50, newest_first=True, after=page[-1])
    await assert_frugal(watch, rows=50)
    watch.clear()
    page = await db.broker.list(root="s60000", limit=50, include_ended=True, newest_first=True)
    assert [summary.id for summary in page] == IN_TREE[:-51:-1]
    await assert_frugal(watch, rows=52)


async def test_a_page_with_the_ended_reads_a_page_of_either(opened: Opened) -> None:
    db, watch = opened
    page = await db.broker.list(limit=50, include_ended=True)
    assert [summary.id for summary in page] == [f"s{i}" for i in range(1, 51)]
    await assert_frugal(watch, rows=100)


@pytest.mark.parametrize("details", [False, True])
async def test_the_sessions_of_a_channel_and_peer_are_an_index_search(
    opened: Opened, details: bool
) -> None:
    db, watch = opened
    page = await db.broker.list(channel="cli", peer="rare", details=details)
    assert len(page) == 33  # of 50 behind s50000 two thirds live
    await db.broker.list(channel="cli", peer="rare", limit=20, newest_first=True)
    await db.broker.list(channel="cli", peer="nobody", include_ended=True)
    await assert_frugal(watch, rows=(66 if details else 33) + 20 + 5)
    watch.clear()
    await db.broker.list(channel="cli", peer="rare", include_ended=True, details=details)
    await assert_frugal(watch, rows=200 if details else 100)


async def test_an_inbox_reads_no_finished_messages_before_its_head(opened: Opened) -> None:
    db, watch = opened
    assert await db.broker.inbox("s60000") == []
    await plans_are_in()
    assert [plan.scans for plan in watch.plans if "Seq Scan" in str(plan)] == []
    assert watch.rows_read <= 200  # SQLite counts the sort of an empty page, too
    watch.clear()
    page = await db.broker.inbox("s50001", limit=10)
    assert [one.status for one in page] == ["dead"] * 10
    await plans_are_in()
    assert watch.rows_read <= 10_000, "the 2,000 dead messages of the namespace, not all 50,000"


async def test_active_since_is_an_index_search(opened: Opened) -> None:
    db, watch = opened
    since = START + timedelta(seconds=90_000)
    page = await db.broker.list(limit=50, active_since=since)
    assert [summary.id for summary in page] == [f"s{n}" for n in range(90_000, 90_076) if n % 3][
        :50
    ]
    await assert_frugal(watch, rows=50)


IN_TREE = [f"s{n}" for n in range(60_000, 80_001)]


async def test_a_page_of_a_tree_reads_no_more_than_the_tree_has_there(opened: Opened) -> None:
    db, watch = opened
    page = await db.broker.list(root="s60000", limit=50, include_ended=True)
    assert [summary.id for summary in page] == IN_TREE[:50]
    await assert_frugal(watch, rows=52)
    watch.clear()
    await db.broker.list(root="s60000", limit=50, after="s70000")
    await assert_frugal(watch, rows=78)  # the ended ones in between are passed over


async def test_a_page_of_children_reads_no_more_than_there_are(opened: Opened) -> None:
    db, watch = opened
    children = [f"s{n}" for n in range(60_100, 80_001, 100)]
    page = await db.broker.list(parent="s60000", limit=50, include_ended=True)
    assert [summary.id for summary in page] == children[:50]
    await assert_frugal(watch, rows=50)
    watch.clear()
    page = await db.broker.list(parent="s60000", limit=50, after="s70000")
    assert [summary.id for summary in page] == [
        name for name in children if int(name[1:]) > 70_000 and int(name[1:]) % 3
    ][:50]
    await assert_frugal(watch, rows=76)


async def test_a_branch_of_a_tree_costs_the_branch(opened: Opened) -> None:
    db, watch = opened
    page = await db.broker.list(root="s60200", include_ended=True)
    assert [summary.id for summary in page] == [f"s{n}" for n in range(60_101, 60_201)]
    await plans_are_in()
    assert "Seq Scan" not in str(watch), str(watch)
    assert watch.rows_read <= 4 * 100, str(watch)


# ---- one session, one message --------------------------------------------------------------------


async def test_a_session_is_found_by_its_key(opened: Opened) -> None:
    db, watch = opened
    assert (await db.broker.get("s70001")).id == "s70001"
    await assert_frugal(watch, rows=2)


async def test_an_outcome_is_found_by_its_key(opened: Opened) -> None:
    db, watch = opened
    outcome = await db.broker.outcome(Receipt(session_id="s50001", position=60_002))
    assert outcome.reply is not None
    assert outcome.reply.seq == 60_002
    await assert_frugal(watch, rows=6)


async def test_dead_letters_are_read_from_their_end(opened: Opened) -> None:
    db, watch = opened
    letters = await db.broker.dead_letters(limit=20)
    assert [letter.receipt.position for letter in letters] == list(range(99_050, 100_001, 50))
    # Each may have an answer, which is a few rows of the transcript.
    await assert_frugal(watch, rows=20 * 6)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_page_reads_its_messages_and_no_inbox(database: Database) -> None:
    """Send ten messages through the inbox, and answer each."""

    async def answer(_turn: Turn) -> str:
        return "hi"

    await explain_everything(database)
    async with watched(database) as (db, watch):
        await db.broker.register("chat", channel="cli", peer="ada")
        for _ in range(10):
            await db.broker.send("chat", "hello")
        assert await db.worker(answer).run_until_idle() == 10
        await db.broker.history("chat", 5)  # a new connection looks types up
        await plans_are_in()
        for most in (20, 22, 3):  # the second read looks for the session and its last message too
            watch.clear()
            assert len(await db.broker.history("chat")) == 20
            await plans_are_in()
            assert watch.rows_read <= most, watch
