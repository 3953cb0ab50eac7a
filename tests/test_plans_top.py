"""The rows that the database reads for ``sessionsdb top`` and the gauges: only busy sessions and
messages of the last minute, never finished messages or idle sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb.admin.status import read_status
from sessionsdb.database import open_database_of
from sessionsdb.operations import stats
from tests.support.plans import explain_everything, plans_are_in, watched

FINISHED = 100_000
IDLE = 20_000
LATELY = 50
"""Messages of the hot session that were sent and answered in the last minute."""
WAITING = 40
"""Other sessions with a message that waits. Every fourth of them is leased."""

ENOUGH = 30 * (LATELY + WAITING)
"""Several times the busy rows, and a thirtieth of the finished rows."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def crowded(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A hot session with 100,000 finished messages, 20,000 idle sessions with one message each, and
    some messages that wait or run."""
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        asyncio.run(crowd(database))
        yield database


async def crowd(database: Database) -> None:
    if database.kind == "sqlite":
        ago = "strftime('%Y-%m-%d %H:%M:%f', 'now', -({0}) || ' seconds') || '000'"
    else:
        ago = "now() - make_interval(secs => {0})"
    now, long_ago, soon = ago.format("0"), ago.format("86400 + n"), ago.format("-3600")
    numbers = (
        "WITH RECURSIVE numbers(n) AS"
        f" (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {FINISHED})"
    )
    await database.query(
        "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active,"
        f" ended_at) {numbers} SELECT 'default', 's' || n, 'cli', 'ann', {long_ago}, {long_ago},"
        f" CASE WHEN n <= 1 + {WAITING} THEN {now} ELSE {long_ago} END,"
        f" CASE WHEN n % 3 = 0 AND n > 1 + {WAITING} THEN {long_ago} END"
        f" FROM numbers WHERE n <= {IDLE}"
    )
    waits = f"n > 1 AND n <= 1 + {WAITING}"
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id, head, tail, pending, taken, ready_at, owner,"
        f" lease_until) {numbers} SELECT 'default', 's' || n,"
        f" CASE n WHEN 1 THEN {FINISHED} + 1 ELSE 2 END,"
        f" CASE WHEN n = 1 THEN {FINISHED} WHEN {waits} THEN 2 ELSE 1 END,"
        f" CASE WHEN {waits} THEN 1 ELSE 0 END,"
        f" CASE WHEN {waits} AND n % 4 = 0 THEN 1 ELSE 0 END,"
        f" CASE WHEN {waits} AND n % 4 <> 0 THEN {now} END,"
        f" CASE WHEN {waits} AND n % 4 = 0 THEN 'w' END,"
        f" CASE WHEN {waits} AND n % 4 = 0 THEN {soon} END"
        f" FROM numbers WHERE n <= {IDLE}"
    )
    columns = (
        "INSERT INTO inbox (namespace, session_id, position, status, content, attempts,"
        " enqueued_at, claimed_at, finished_at, first_seq, last_seq)"
    )
    when = f"CASE WHEN n > {FINISHED - LATELY} THEN {now} ELSE {long_ago} END"
    await database.query(
        f"{columns} {numbers} SELECT 'default', 's1', n, 'done', 'x', 1, {when}, {when}, {when},"
        " 2 * n - 1, 2 * n FROM numbers"
    )
    await database.query(
        f"{columns} {numbers} SELECT 'default', 's' || n, 1, 'done', 'x', 1,"
        f" {long_ago}, {long_ago}, {long_ago}, 1, 2 FROM numbers WHERE n > 1 AND n <= {IDLE}"
    )
    await database.query(
        f"{columns} {numbers} SELECT 'default', 's' || n, 2,"
        f" CASE WHEN n % 4 = 0 THEN 'running' ELSE 'pending' END, 'x', 1, {now}, {now},"
        f" CAST(NULL AS {'text' if database.kind == 'sqlite' else 'timestamptz'}), NULL, NULL"
        f" FROM numbers WHERE {waits}"
    )
    if database.kind == "postgresql":
        await database.query("ANALYZE")  # a SQLite file is seldom analysed
    await explain_everything(database)


@pytest.mark.parametrize("everywhere", [False, True], ids=["namespace", "everywhere"])
async def test_top_reads_busy_sessions_and_no_finished_messages(
    crowded: Database, everywhere: bool
) -> None:
    async with watched(crowded) as (db, watch):
        await crowded.query(FRESH[crowded.kind])
        await plans_are_in()
        watch.clear()
        seen = await read_status(db, all_namespaces=everywhere)
        await plans_are_in()
    assert (seen.sends_per_minute, seen.turns_per_minute) == (LATELY + WAITING, LATELY)
    assert (seen.leased, seen.ready, len(seen.turns)) == (10, 30, 10)
    assert LATELY < watch.rows_read < ENOUGH, str(watch)


async def test_the_gauges_read_busy_sessions_and_no_finished_messages(crowded: Database) -> None:
    async with watched(crowded) as (db, watch):
        await plans_are_in()
        for namespaces in (["default"], None):
            watch.clear()
            load = await open_database_of(db).runner.read(
                partial(stats.load, namespaces=namespaces)
            )
            await plans_are_in()
            assert (load.pending, load.running, load.leased) == (30, 10, 10)
            assert watch.rows_read < ENOUGH, str(watch)


# The minute passes while the tests run, so recent messages are moved with it.
FRESH = {
    "sqlite": f"""
        UPDATE inbox SET enqueued_at = strftime('%Y-%m-%d %H:%M:%f', 'now') || '000',
            finished_at = CASE WHEN finished_at IS NOT NULL
                THEN strftime('%Y-%m-%d %H:%M:%f', 'now') || '000' END
        WHERE (session_id = 's1' AND position > {FINISHED - LATELY}) OR finished_at IS NULL
    """,
    "postgresql": f"""
        UPDATE inbox SET enqueued_at = now(),
            finished_at = CASE WHEN finished_at IS NOT NULL THEN now() END
        WHERE (session_id = 's1' AND position > {FINISHED - LATELY}) OR finished_at IS NULL
    """,
}
