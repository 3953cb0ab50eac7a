"""Pages of history that were read before: newer messages are read, and the others still stand."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from devtools.databases import Database
from sessionsdb import SessionMessage, SessionsDB, Turn, UnknownSession
from sessionsdb.database import open_database_of
from sessionsdb.engine.storage_errors import DataDamaged
from sessionsdb.operations.history_page import HistoryPage
from sessionsdb.operations.remembered_page import RememberedPage
from sessionsdb.runtime.remembered import Remembered
from tests.support.plans import explain_everything, plans_are_in, watched
from tests.support.proxy import When, proxy_to
from tests.support.transcript_changes import (
    CALL,
    CHANGES,
    HELLO,
    Change,
    begin,
    numbered,
)

LIMITS = (1, 4, 10, 50, 500)
"""Pages of a part of the first transcript, of all of it, and one so long that it is read alone."""


@pytest.fixture
async def other(database: Database) -> AsyncIterator[SessionsDB]:
    """A handle like that of another process."""
    async with SessionsDB(database.url) as other:
        yield other


def pages_of(db: SessionsDB) -> Remembered[HistoryPage, RememberedPage]:
    return open_database_of(db).history_pages.remembered


async def remember(db: SessionsDB, id: str = "s", limit: int = 50) -> list[SessionMessage]:
    await db.broker.history(id, limit)
    page = await db.broker.history(id, limit)
    assert HistoryPage(db.namespace, id, limit) in pages_of(db).values
    return page


async def read_by(db: SessionsDB, limit: int, id: str = "s") -> list[SessionMessage] | None:
    try:
        return await db.broker.history(id, limit)
    except UnknownSession:
        return None


async def fresh(database: Database, limit: int, id: str = "s") -> list[SessionMessage] | None:
    """Return a page as a process reads it for the first time."""
    async with SessionsDB(database.url) as db:
        return await read_by(db, limit, id)


async def test_the_messages_behind_the_remembered_ones_are_read_and_no_others(
    database: Database,
) -> None:
    await explain_everything(database)
    async with watched(database) as (db, watch):
        await db.store.save("s", numbered(1_000))
        await remember(db)
        for count in (1_000, 1_002, 1_004):
            watch.clear()
            page = await db.broker.history("s")
            assert [m.content for m in page] == [f"message {n}" for n in range(count - 50, count)]
            await plans_are_in()
            assert watch.rows_read <= 6, str(watch)
            assert not any(plan.sorts or plan.scans for plan in watch.plans), str(watch)
            await db.store.append("s", numbered(2, count))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_page_is_what_another_process_left(
    db: SessionsDB, other: SessionsDB, database: Database, change: Change
) -> None:
    await begin(other)
    for limit in LIMITS:
        assert await remember(db, limit=limit) == await fresh(database, limit)
    await change(other, database)
    for limit in LIMITS:
        stands = await fresh(database, limit)
        for _ in range(3):
            assert await read_by(db, limit) == stands
    if await fresh(database, 1) is not None:
        await other.store.append("s", [HELLO])
        for limit in LIMITS:
            assert await read_by(db, limit) == await fresh(database, limit)


@pytest.mark.parametrize("seed", range(6))
async def test_a_page_is_what_many_changes_left(
    db: SessionsDB, other: SessionsDB, database: Database, seed: int
) -> None:
    picked = random.Random(seed)
    for _ in range(25):
        if not await other.store.load("s"):
            await begin(other)
        change = picked.choice(CHANGES)
        await change(picked.choice((db, other)), database)
        for limit in picked.sample(LIMITS, 2):
            stands = await fresh(database, limit)
            for _ in range(picked.randrange(3)):
                assert await read_by(db, limit) == stands, change.__name__


async def test_pages_of_many_callers_are_those_of_each(db: SessionsDB) -> None:
    names = [f"s{number}" for number in range(40)]
    for number, name in enumerate(names):
        await db.store.save(name, numbered(number))

    async def contents(name: str) -> list[str] | None:
        page = await read_by(db, 30, name)
        return None if page is None else [message.content for message in page]

    for _ in range(3):
        pages = await asyncio.gather(*map(contents, [*names, "nobody", *names]))
        expected = [[f"message {n}" for n in range(number)][-30:] for number in range(40)]
        assert pages == [*expected, None, *expected]
        for number, name in enumerate(names):
            if number % 2:
                await db.store.save(name, numbered(number))


async def test_pages_beside_appends_are_pages_that_stood(db: SessionsDB, other: SessionsDB) -> None:
    """Several reads of one page at once extend the same remembered messages."""
    await other.store.save("s", numbered(3))
    await remember(db, limit=10)

    async def append() -> None:
        for count in range(3, 40):
            await other.store.append("s", numbered(1, count))

    async def read() -> None:
        last = 0
        while last < 39:
            page = await db.broker.history("s", 10)
            numbers = [int(message.content.removeprefix("message ")) for message in page]
            assert numbers == list(range(max(0, numbers[-1] - 9), numbers[-1] + 1))
            assert numbers[-1] >= last
            last = numbers[-1]

    await asyncio.wait_for(asyncio.gather(append(), *(read() for _ in range(8))), 60)


async def test_a_handler_reads_the_turns_before_it(db: SessionsDB) -> None:
    seen: list[list[str]] = []
    await db.store.save("s", [])

    async def handler(turn: Turn) -> str:
        seen.append([message.content for message in await turn.history(4)])
        return f"reply {len(seen)}"

    for number in range(6):
        await db.broker.send("s", f"question {number}")
        await db.worker(handler).run_until_idle()
    said = [content for n in range(6) for content in (f"question {n}", f"reply {n + 1}")]
    assert seen == [said[: 2 * n][-4:] for n in range(6)]


async def test_a_page_belongs_to_its_caller(db: SessionsDB) -> None:
    metadata = {"ticket": {"id": 1}}
    await db.store.save("s", [])
    await db.broker.send("s", "one", author="Ann", metadata=metadata)
    await db.worker(_answer).run_until_idle()
    for round in range(4):
        page = await db.broker.history("s")
        assert [message.content for message in page] == ["one", *["yes"] * (round + 1)]
        assert page[0].metadata == metadata
        page[0].metadata["ticket"]["id"] = 2
        page.clear()
        await db.store.append("s", [{"role": "assistant", "content": "yes"}])


async def _answer(turn: Turn) -> str:
    return "yes"


async def test_an_unknown_session_is_forgotten(db: SessionsDB, other: SessionsDB) -> None:
    await other.store.save("s", numbered(3))
    await remember(db)
    await other.store.delete("s")
    for _ in range(2):
        with pytest.raises(UnknownSession):
            await db.broker.history("s")
        assert not pages_of(db).values
        assert pages_of(db).size == 0


async def test_sessions_of_one_id_are_remembered_apart(db: SessionsDB) -> None:
    there = db.in_namespace("there")
    await db.store.save("s", numbered(3))
    await there.store.save("s", [HELLO])
    for _ in range(3):
        assert [m.content for m in await there.broker.history("s")] == ["hello"]
        assert len(await db.broker.history("s")) == 3


async def test_a_session_made_again_at_the_same_time_is_another_one(
    db: SessionsDB, other: SessionsDB, database: Database
) -> None:
    """A clock may be set back. The incarnation differs then."""
    at_once = "UPDATE messages SET created_at = '2030-01-01 00:00:00.000000'"
    await other.store.save("s", numbered(2))
    await database.query(at_once)
    await remember(db)
    await other.store.delete("s")
    await other.store.save("s", [HELLO, CALL])
    await database.query(at_once)
    assert await db.broker.history("s") == await fresh(database, 50)


async def test_only_the_newest_page_is_remembered(db: SessionsDB) -> None:
    await db.store.save("s", numbered(30))
    for _ in range(3):
        assert [m.seq for m in await db.broker.history("s", 2, before=10)] == [8, 9]
        assert [m.seq for m in await db.broker.history("s", 2, after=10)] == [11, 12]
        assert [m.seq for m in await db.broker.history("s", 2, max_bytes=1)] == [30]
        assert await db.broker.history("s", 0) == []
    assert not pages_of(db).values


async def test_a_page_is_remembered_at_its_second_read(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_of(db), "min_messages", 3)
    await db.store.save("s", numbered(3))
    for _ in range(2):
        assert not pages_of(db).values
        await db.broker.history("s")
    assert [page.limit for page in pages_of(db).values] == [50]
    for _ in range(3):
        await db.broker.history("s", 2)
    assert [page.limit for page in pages_of(db).values] == [50]
    await db.store.save("s", numbered(2))
    await db.broker.history("s")
    assert not pages_of(db).values


async def test_a_large_page_is_not_remembered(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metadata would be parsed for each caller, on the event loop."""
    monkeypatch.setattr(pages_of(db), "max_value_bytes", 20_000)
    metadata = {"text": "x" * 10_000}
    await db.store.save("s", numbered(3))
    await remember(db)
    await db.broker.send("s", "large", metadata=metadata)
    await db.worker(_answer).run_until_idle()
    for _ in range(4):
        page = await db.broker.history("s")
        assert [message.metadata for message in page] == [None, None, None, metadata, None]
        assert not pages_of(db).values
    assert not pages_of(db).is_due(HistoryPage(db.namespace, "s", 50))
    await remember(db, limit=1)


async def test_damaged_counters_double_no_message(
    db: SessionsDB, other: SessionsDB, database: Database
) -> None:
    """A tool of somebody else has written messages and no counters: ``doctor`` finds that."""
    await begin(other)
    for damage in (
        "last_seq = last_seq - 4",
        "message_count = message_count - 4",
        "last_seq = last_seq + 4, message_count = message_count + 4",
        "message_count = 5",
    ):
        await database.query(f"UPDATE sessions SET {damage}")
        for limit in LIMITS:
            stands = await fresh(database, limit)
            for _ in range(4):
                assert await read_by(db, limit) == stands


async def test_the_size_of_a_page_is_its_memory(db: SessionsDB) -> None:
    """Texts that are not ASCII grow when a caller writes their messages as JSON."""
    metadata = {"tags": [f"tag {n}" for n in range(20)], "of": {"n": 1.5, "what": "x" * 100}}
    await db.store.save("s", [])
    for content in ("hello", "你好" * 100, "x" * 400 + "🙂"):
        await db.broker.send("s", content, author="你" * 1_000, metadata=metadata)
        await db.worker(_answer).run_until_idle()
        await db.store.append("s", [{"role": "x" * 2_000, "content": "你好吗" * 300}] * 20)
    limits = (6, 20, 50, 100)
    for _ in range(5):
        for limit in limits:
            for message in await remember(db, limit=limit):
                message.model_dump_json()
        for page in pages_of(db).values.values():
            memory = sum(_memory(one.message) + sys.getsizeof(one.extra) for one in page.kept)
            assert memory < page.size < 1.7 * memory
            assert page.size == sum(one.size for one in page.kept)
        assert pages_of(db).size == sum(page.size for page in pages_of(db).values.values())
        await db.store.append("s", numbered(5))


def _memory(message: SessionMessage) -> int:
    texts = (message.role, message.content, message.author, message.sender)
    return sum(map(sys.getsizeof, (message, vars(message), message.timestamp, *texts)))


async def test_a_page_is_read_again_whatever_its_metadata_is(
    db: SessionsDB, database: Database
) -> None:
    """A restored file may hold numbers that no JSON has."""
    await begin(db)
    for extra in ('{"metadata":{"score":1e999}}', '{"author":"Ann","metadata":{}}'):
        await database.query(f"UPDATE messages SET extra = '{extra}' WHERE seq = 2")
        await database.query("UPDATE sessions SET rewrites = rewrites + 1")
        for _ in range(4):
            assert await read_by(db, 50) == await fresh(database, 50)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_page_whose_connection_breaks_is_right(
    database: Database, other: SessionsDB
) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await begin(other)
        await remember(db)
        whens: tuple[When, ...] = ("before", "while", "after")
        for when in whens:
            await other.store.append("s", [HELLO])
            proxy.cut("UNION ALL", when)
            assert await db.broker.history("s") == await fresh(database, 50)
            assert proxy.cuts == 1


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_damaged_rows_fail_the_page_that_has_them(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        for id in ("good", "bad"):
            await db.store.save(id, numbered(3))
            await remember(db, id)
            await db.store.append(id, [HELLO])
        await database.query(
            "UPDATE messages SET content = CAST(X'ff' AS text)"
            " WHERE session_id = 'bad' AND content = 'hello'"
        )
        for _ in range(2):
            good, bad = await asyncio.gather(
                *(db.broker.history(id) for id in ("good", "bad")), return_exceptions=True
            )
            assert good == await fresh(database, 50, "good")
            assert isinstance(bad, DataDamaged)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_what_an_open_transaction_wrote_is_not_remembered(database: Database) -> None:
    """A database in memory has one connection, so a read sees what a caller has not committed."""
    async with SessionsDB("sqlite://", migrate=True) as db:
        await db.store.save("s", numbered(3))
        async with db.engine.connect() as connection:
            await connection.execute(text("UPDATE messages SET content = 'never' WHERE seq = 1"))
            for _ in range(3):
                assert (await db.broker.history("s"))[0].content == "never"
            await connection.rollback()
        assert (await db.broker.history("s"))[0].content == "message 0"


async def test_a_handle_that_was_closed_has_forgotten(database: Database) -> None:
    db = SessionsDB(database.url)
    async with db:
        await db.store.save("s", numbered(3))
        await remember(db)
        under_way = asyncio.create_task(db.broker.history("s"))
        await asyncio.sleep(0)
    assert len(await under_way) == 3
    assert not pages_of(db).values
    async with db:
        assert len(await db.broker.history("s")) == 3
