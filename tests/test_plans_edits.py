"""The rows that the database reads for an edit of a transcript of 100,000 messages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Edit, SessionsDB
from tests.support.plans import Watch, explain_everything, plans_are_in, watched

ROWS = 100_000
TIME = "2024-01-01 00:00:00.000000+00"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def long(request: pytest.FixtureRequest) -> Iterator[Database]:
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        asyncio.run(fill(database))
        yield database


async def fill(database: Database) -> None:
    """The session "long" has 100,000 messages, every tenth with a key, and 1,000 others have ten.

    Ten of the other sessions have a key in common.
    """
    async with SessionsDB(database.url) as db:
        await db.store.append("long", [])
        await asyncio.gather(*(db.store.append(f"s{n}", []) for n in range(1_000)))
    time = f"'{TIME[:-3]}'" if database.kind == "sqlite" else f"timestamptz '{TIME}'"
    numbers = (
        "WITH RECURSIVE numbers(n) AS"
        f" (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {ROWS})"
    )
    columns = "(namespace, session_id, seq, role, content, created_at, key)"
    await database.query(
        f"INSERT INTO messages {columns} {numbers} SELECT 'default', 'long', n, 'user',"
        f" 'message ' || n, {time}, CASE WHEN n % 10 = 0 THEN 'k' || n END FROM numbers"
    )
    await database.query(
        f"INSERT INTO messages {columns} {numbers} SELECT 'default', 's' || (n % 1000), n, 'user',"
        f" 'message ' || n, {time}, CASE WHEN n <= 10 THEN 'shared' END FROM numbers"
        " WHERE n <= 10000"
    )
    await database.query(
        f"UPDATE sessions SET last_seq = {ROWS}, message_count = {ROWS} WHERE id = 'long'"
    )
    await database.query("ANALYZE")
    await explain_everything(database)


Opened = tuple[SessionsDB, Watch]


@pytest.fixture
async def opened(long: Database) -> AsyncIterator[Opened]:
    async with watched(long) as (db, watch):
        await db.store.append("warm", [{"role": "user", "content": "types are looked up"}])
        await plans_are_in()
        watch.clear()
        yield db, watch


async def assert_frugal(watch: Watch, *, rows: int) -> None:
    """Assert that no table was scanned, and at most ``rows`` rows were read."""
    await plans_are_in()
    # The driver looks up types, and a transaction leaves its stamp in a table of few rows.
    plans = [one for one in watch.plans if not re.search("pg_type|write_stamps", one.sql)]
    assert plans
    assert [plan.scans for plan in plans if plan.scans] == [], str(watch)
    assert sum(plan.rows_read for plan in plans) <= rows, str(watch)
    watch.clear()


def say(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("cursor", "first"),
    [({}, 99_951), ({"before": 50_000}, 49_950), ({"after": 50_000}, 50_001)],
    ids=["last", "before", "after"],
)
async def test_a_page_of_entries_reads_a_page(
    opened: Opened, cursor: dict[str, int], first: int
) -> None:
    db, watch = opened
    entries = await db.store.entries("long", 50, **cursor)
    assert [entry.seq for entry in entries] == list(range(first, first + 50))
    await assert_frugal(watch, rows=50)


async def test_a_message_is_found_by_its_key_in_an_index(opened: Opened) -> None:
    db, watch = opened
    for id in ("long", None):
        found = await db.store.find("k50000", id=id)
        assert found is not None
        assert found.seq == 50_000
        await assert_frugal(watch, rows=2)
    assert await db.store.find("no such") is None
    await assert_frugal(watch, rows=0)


async def test_a_key_of_several_sessions_reads_these(opened: Opened) -> None:
    db, watch = opened
    found = await db.store.find("shared")
    assert found is not None
    assert found.session_id.startswith("s")
    await assert_frugal(watch, rows=20)


CONSTANT = 10
"""The rows that an edit reads beside the messages that it changes: the session, again and again."""


async def test_an_append_with_keys_reads_its_keys(opened: Opened) -> None:
    db, watch = opened
    for _ in range(2):
        await db.store.append("long", [say("a"), say("b")], keys=["a", "b"])
        await assert_frugal(watch, rows=CONSTANT)
    await db.store.pop("long", 2)


async def test_an_edit_reads_its_changes(opened: Opened) -> None:
    db, watch = opened
    [last] = await db.store.entries("long", 1)
    await plans_are_in()
    watch.clear()
    edit = Edit(
        append=[say(str(number)) for number in range(20)],
        keys=[f"edit {number}" for number in range(20)],
        keep_through=last.seq,
        expected_tail=[last.seq],
    )
    for _ in range(2):
        assert len((await db.store.edit("long", edit)).appended) == 20
        await assert_frugal(watch, rows=3 * 20 + CONSTANT)
    assert len(await db.store.pop("long", 20)) == 20
    await assert_frugal(watch, rows=3 * 20 + CONSTANT)


async def test_pop_truncate_and_replace_read_their_changes(opened: Opened) -> None:
    db, watch = opened
    await db.store.append("long", [say(str(number)) for number in range(10)])
    entries = await db.store.entries("long", 10)
    await plans_are_in()
    watch.clear()
    await db.store.replace("long", 50_000, say(f"replaced at {entries[0].seq}"))
    await assert_frugal(watch, rows=CONSTANT)
    await db.store.pop("long")
    await assert_frugal(watch, rows=CONSTANT)
    await db.store.truncate("long", keep_through=entries[0].seq - 1)
    await assert_frugal(watch, rows=2 * 9 + CONSTANT)
