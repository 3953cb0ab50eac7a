"""Loads of a transcript that was loaded before: they read what is new, and return what stands."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_core import to_json
from sqlalchemy import text

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.runtime import remembered, transcript_loads
from sessionsdb.runtime.transcript_loads import TranscriptLoads
from tests.support.command_line import CommandLine
from tests.support.plans import explain_everything, plans_are_in, watched
from tests.support.proxy import When, proxy_to
from tests.support.transcript_changes import (
    CALL,
    CHANGES,
    HELLO,
    OTHER,
    Change,
    begin,
    nothing,
    numbered,
)


@pytest.fixture
async def other(database: Database) -> AsyncIterator[SessionsDB]:
    """A handle like that of another process. It never loads a session twice."""
    async with SessionsDB(database.url) as other:
        yield other


@pytest.fixture(autouse=True)
def _remember_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript_loads, "REMEMBERED_FROM", 1)


def loads_of(db: SessionsDB) -> TranscriptLoads:
    return open_database_of(db).transcript_loads


async def remember(db: SessionsDB, id: str = "s") -> list[dict[str, Any]] | None:
    await db.store.load(id)
    loaded = await db.store.load(id)
    assert (db.namespace, id) in loads_of(db).remembered.values
    return loaded


async def fresh(database: Database, id: str = "s") -> list[dict[str, Any]] | None:
    async with SessionsDB(database.url) as db:
        return await db.store.load(id)


async def test_the_messages_behind_the_remembered_ones_are_read_and_no_others(
    database: Database,
) -> None:
    await explain_everything(database)
    async with watched(database) as (db, watch):
        await db.store.save("s", numbered(1_000))
        await remember(db)
        for count in (1_000, 1_002, 1_004):
            watch.clear()
            assert await db.store.load("s") == numbered(count)
            await plans_are_in()
            assert watch.rows_read <= 6, str(watch)
            assert not any(plan.sorts or plan.scans for plan in watch.plans), str(watch)
            await db.store.append("s", numbered(2, count))


async def test_loads_of_many_callers_return_the_transcript_of_each(db: SessionsDB) -> None:
    names = [f"s{number}" for number in range(40)]
    for number, name in enumerate(names):
        await db.store.save(name, numbered(number))
    for _ in range(3):
        loaded = await asyncio.gather(*map(db.store.load, [*names, "nobody", *names]))
        assert loaded == [*map(numbered, range(40)), None, *map(numbered, range(40))]
    for number, name in enumerate(names[:20]):
        await db.store.append(name, numbered(number * 10, number))
    loaded = await asyncio.gather(*map(db.store.load, names))
    lengths = [number * 11 if number < 20 else number for number in range(40)]
    assert loaded == list(map(numbered, lengths))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_load_returns_what_another_process_left(
    db: SessionsDB, other: SessionsDB, database: Database, change: Change
) -> None:
    await begin(other)
    remembered = await remember(db)
    assert remembered == await fresh(database)
    await change(other, database)
    stands = await fresh(database)
    if change is not nothing:
        assert stands != remembered
    for _ in range(3):
        assert await db.store.load("s") == stands
    if stands is not None:
        await other.store.append("s", [HELLO])
        assert await db.store.load("s") == [*stands, HELLO]


@pytest.mark.parametrize("seed", range(6))
async def test_a_load_returns_what_many_changes_left(
    db: SessionsDB, other: SessionsDB, database: Database, seed: int
) -> None:
    picked = random.Random(seed)
    for _ in range(25):
        if await other.store.version("s") is None or not await other.store.load("s"):
            await begin(other)
        change = picked.choice(CHANGES)
        await change(picked.choice((db, other)), database)
        stands = await fresh(database)
        for _ in range(picked.randrange(3)):
            assert await db.store.load("s") == stands, change.__name__


async def test_commits_that_were_lost_behind_a_pop_are_noticed(
    db: SessionsDB, other: SessionsDB, database: Database
) -> None:
    """The message that would tell is gone on both sides of a failover."""
    await begin(other)
    counters = "version, last_seq, message_count, rewrites"
    [stood] = await database.query(f"SELECT {counters} FROM sessions")
    for content in ("lost", "there"):
        await other.store.append("s", [{"role": "user", "content": content}, HELLO])
        await other.store.pop("s")
        for _ in range(3):
            assert await db.store.load("s") == await fresh(database)
        if content == "lost":
            await database.query(f"DELETE FROM messages WHERE seq > {stood[1]}")
            values = ", ".join(
                f"{name} = {value}" for name, value in zip(counters.split(", "), stood, strict=True)
            )
            await database.query(f"UPDATE sessions SET {values}")


async def test_loads_beside_appends_are_transcripts_that_stood(
    db: SessionsDB, other: SessionsDB
) -> None:
    """Several loads of one session at once extend the same remembered rows."""
    await other.store.save("s", numbered(3))
    await remember(db)

    async def append() -> None:
        for count in range(3, 40):
            await other.store.append("s", numbered(1, count))

    async def load() -> None:
        length = 0
        while length < 40:
            loaded = await db.store.load("s") or []
            assert loaded == numbered(len(loaded))
            assert len(loaded) >= length
            length = len(loaded)

    await asyncio.wait_for(asyncio.gather(append(), *(load() for _ in range(8))), 60)


async def test_a_loaded_message_belongs_to_its_caller(db: SessionsDB) -> None:
    await db.store.save("s", [HELLO, CALL])
    for _ in range(3):
        loaded = await db.store.load("s")
        assert loaded == [HELLO, CALL]
        loaded[0]["content"] = "changed"
        loaded[1]["tool_calls"][0]["args"]["n"] = 2
        loaded.append(HELLO)


async def test_sessions_of_one_id_are_remembered_apart(db: SessionsDB) -> None:
    there = db.in_namespace("there")
    await db.store.save("s", numbered(3))
    await there.store.save("s", [CALL])
    for _ in range(3):
        assert await db.store.load("s") == numbered(3)
        assert await there.store.load("s") == [CALL]


async def test_a_session_made_again_at_the_same_time_is_another_one(
    db: SessionsDB, other: SessionsDB, database: Database
) -> None:
    """A clock may be set back. The incarnation differs then."""
    at_once = "UPDATE messages SET created_at = '2030-01-01 00:00:00.000000'"
    await other.store.save("s", [HELLO, CALL])
    await database.query(at_once)
    await remember(db)
    await other.store.delete("s")
    await other.store.save("s", [OTHER, CALL])
    await database.query(at_once)
    assert await db.store.load("s") == [OTHER, CALL]


async def test_an_edited_export_is_seen_after_each_import(
    db: SessionsDB, database: Database
) -> None:
    """The file has the incarnation, the numbers and the times of the session that was deleted."""
    await begin(db)
    run = CommandLine(database.url)
    line = json.loads((await asyncio.to_thread(run, "export", "--full")).ok().stdout)
    await remember(db)
    for secret in ("redacted", "redacted again"):
        await db.store.delete("s")
        line["messages"][1]["content"] = secret
        done = await asyncio.to_thread(run, "import", "-", input=json.dumps(line) + "\n")
        assert done.ok().stdout.startswith("1 saved")
        for _ in range(3):
            assert await db.store.load("s") == line["messages"]


async def test_damaged_counters_double_no_message(
    db: SessionsDB, other: SessionsDB, database: Database
) -> None:
    """A tool of somebody else has written messages and no counters: ``doctor`` finds that."""
    await begin(other)
    await database.query("UPDATE sessions SET last_seq = last_seq - 4")
    stands = await fresh(database)
    for _ in range(4):
        assert await db.store.load("s") == stands
    await database.query("UPDATE sessions SET message_count = message_count - 4")
    for _ in range(4):
        assert await db.store.load("s") == stands
    await database.query(
        "UPDATE sessions SET last_seq = last_seq + 4, message_count = message_count + 4"
    )
    for _ in range(4):
        assert await db.store.load("s") == stands


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_load_whose_connection_breaks_is_right(
    database: Database, other: SessionsDB
) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await begin(db)
        remembered = await remember(db)
        assert remembered is not None
        whens: tuple[When, ...] = ("before", "while", "after")
        for when in whens:
            await other.store.append("s", [HELLO])
            proxy.cut("UNION ALL", when)
            remembered.append(HELLO)
            assert await db.store.load("s") == remembered
            assert proxy.cuts == 1


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_what_an_open_transaction_wrote_is_not_remembered(database: Database) -> None:
    """A database in memory has one connection, so a read sees what a caller has not committed."""
    async with SessionsDB("sqlite://", migrate=True) as db:
        await db.store.save("s", numbered(3))
        rewrite = text("UPDATE sessions SET version = version + 1, rewrites = rewrites + 1")
        async with db.engine.connect() as connection:
            await connection.execute(text("UPDATE messages SET content = 'never' WHERE seq = 1"))
            await connection.execute(rewrite)
            for _ in range(3):
                loaded = await db.store.load("s")
                assert loaded is not None
                assert loaded[0]["content"] == "never"
            await connection.rollback()
        async with db.engine.begin() as connection:
            await connection.execute(rewrite)
        assert await db.store.load("s") == numbered(3)


# ---- what is remembered --------------------------------------------------------------------------


async def test_rows_are_remembered_at_the_second_load(db: SessionsDB) -> None:
    await db.store.save("s", numbered(3))
    await db.store.load("s")
    assert not loads_of(db).remembered.values
    await db.store.load("s")
    assert [*loads_of(db).remembered.values] == [("default", "s")]
    await db.store.delete("s")
    assert await db.store.load("s") is None
    assert not loads_of(db).remembered.values
    assert loads_of(db).remembered.size == 0


async def test_a_short_transcript_is_not_remembered(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads_of(db).remembered, "min_messages", 4)
    await db.store.save("s", numbered(3))
    for _ in range(3):
        assert await db.store.load("s") == numbered(3)
    assert not loads_of(db).remembered.values
    await db.store.append("s", numbered(1, 3))
    await remember(db)


async def test_a_program_that_comes_back_late_makes_no_process_remember(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a program with more transcripts than fit would drop all rows before it needs
    them."""
    monkeypatch.setattr(loads_of(db).remembered, "max_between", 25)
    ids = [f"s{number}" for number in range(10)]
    for id in ids:
        await db.store.save(id, numbered(5))
    for id in (*ids, *ids):
        await db.store.load(id)
    assert not loads_of(db).remembered.values
    await db.store.load(ids[-1])
    assert len(loads_of(db).remembered.values) == 1


async def test_the_rows_that_were_used_longest_ago_are_dropped(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in ("a", "b", "c"):
        await db.store.save(id, [{"role": "user", "content": "x" * 1_000}] * 3)
    await remember(db, "a")
    size = loads_of(db).remembered.size
    for name in ("max_bytes", "max_value_bytes"):
        monkeypatch.setattr(loads_of(db).remembered, name, 2 * size)
    for id in ("b", "a", "c"):
        await remember(db, id)
    remembered = loads_of(db).remembered.values
    assert [id for _, id in remembered] == ["a", "c"]
    assert loads_of(db).remembered.size == 2 * size
    big = {"role": "tool", "content": "", "n": "x" * 1_000}
    await db.store.append("a", [big])
    await db.store.load("a")
    assert [id for _, id in remembered] == ["a"]
    assert (
        loads_of(db).remembered.size == sum(one.size for one in remembered.values()) > size + 1_000
    )
    await db.store.append("a", [big] * 9)
    assert len(await db.store.load("a") or ()) == 13
    for _ in range(3):
        assert not remembered, "it is larger than all that may be remembered"
        assert loads_of(db).remembered.size == 0
        assert not loads_of(db).remembered.is_due(("default", "a"))
        await db.store.load("a")


@pytest.mark.parametrize("text", ["hello", "你好" * 100, "x" * 400 + "🙂"])
async def test_the_size_of_remembered_rows_is_their_memory(db: SessionsDB, text: str) -> None:
    await db.store.save("s", [{"role": "user", "content": text}, {"role": "tool", "n": text}] * 20)
    for message in await remember(db) or ():
        to_json(message)  # its content keeps its UTF-8 then
    [loaded] = loads_of(db).remembered.values.values()
    memory = sum(sys.getsizeof(row) + sum(map(sys.getsizeof, row)) for row in loaded.rows)
    assert memory < loaded.size < 1.5 * memory + 200 * len(loaded.rows)


async def test_a_handle_that_was_closed_has_forgotten(database: Database) -> None:
    db = SessionsDB(database.url)
    async with db:
        await db.store.save("s", numbered(3))
        await remember(db)
        under_way = asyncio.create_task(db.store.load("s"))
        await asyncio.sleep(0)
    assert await under_way == numbered(3)
    assert not loads_of(db).remembered.values
    async with db:
        assert await db.store.load("s") == numbered(3)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_long_transcript_shares_a_statement_once_it_is_remembered(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await db.store.save("short", [HELLO])
        await db.store.save("long", numbered(101))

        async def shared() -> int:
            """Load the session beside another one, which makes it share a statement if it may."""
            proxy.executed.clear()
            _, loaded = await asyncio.gather(db.store.load("short"), db.store.load("long"))
            assert loaded == await fresh(database, "long")
            return sum("unnest(" in statement for statement in proxy.executed)

        remembered = loads_of(db).remembered
        monkeypatch.setattr(remembered, "max_between", -1)
        assert [await shared() for _ in range(3)] == [1, 0, 0]
        await db.store.save("long", [HELLO])
        assert [await shared() for _ in range(3)] == [0, 1, 1]
        await db.store.append("long", [HELLO] * 100)
        assert [await shared() for _ in range(3)] == [1, 0, 0]
        monkeypatch.setattr(remembered, "max_between", 1_000)
        assert [await shared() for _ in range(3)] == [0, 1, 1]
        await db.store.append("long", [HELLO] * 101)
        assert await shared() == 1
        assert "unnest(" not in proxy.executed[-1], "so many messages are read alone"
        assert [await shared() for _ in range(2)] == [1, 1]
        await db.store.replace("long", (await db.store.entries("long", limit=1))[0].seq, CALL)
        assert [await shared() for _ in range(3)] == [1, 1, 1]


async def test_only_the_last_loads_are_noted(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MAX_NOTED", 3)
    for number in range(8):
        await db.store.save(f"s{number}", numbered(2))
        await db.store.load(f"s{number}")
    assert [id for _, id in loads_of(db).remembered._last_reads] == ["s5", "s6", "s7"]
