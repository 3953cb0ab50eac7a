"""SessionStore, on both databases."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import re
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select

from devtools.databases import Database
from sessionsdb import (
    Edit,
    InvalidArgument,
    InvalidMessage,
    InvalidSessionId,
    Limits,
    ListOptions,
    SessionHasChildren,
    SessionsDB,
    SpawnDenied,
    SpawnRequest,
    StorageError,
    UnknownSession,
    VersionConflict,
)
from sessionsdb.engine.sqlite import series_insert
from sessionsdb.schema import sessions
from tests.support import messages as strategies
from tests.support.messages import HOSTILE

Run = Callable[[Coroutine[Any, Any, Any]], Any]

HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"message {i}"} for i in range(start, start + count)]


async def stored_ids(db: SessionsDB) -> list[str]:
    return [record.id for record in await db.store.list()]


# ---- load, save, append --------------------------------------------------------------------------


async def test_a_transcript_comes_back_as_it_was_saved(db: SessionsDB) -> None:
    transcript = [HELLO, {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}]
    await db.store.save("s", transcript)
    assert await db.store.load("s") == transcript


async def test_a_save_overwrites(db: SessionsDB) -> None:
    await db.store.save("s", [HELLO, HI])
    await db.store.save("s", [HI])
    assert await db.store.load("s") == [HI]


async def test_an_append_adds_at_the_end(db: SessionsDB) -> None:
    await db.store.save("s", [HELLO])
    await db.store.append("s", [HI, HELLO])
    assert await db.store.load("s") == [HELLO, HI, HELLO]


async def test_an_append_creates_the_session(db: SessionsDB) -> None:
    assert await db.store.append("s", [HELLO]) == 1
    assert await db.store.load("s") == [HELLO]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 200])
async def test_a_write_of_any_length_is_stored_in_order(db: SessionsDB, count: int) -> None:
    # SQLite inserts up to 32 messages with one statement.
    await write_and_read(db, count)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_numbered_values_may_be_passed_as_names(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12.0 to 3.12.3 want them as names, and all versions take them so."""
    monkeypatch.setattr(series_insert, "NUMBERS_ARE_NAMES", True)
    await write_and_read(db, 103)


async def test_a_write_whose_statements_are_logged_is_the_same(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        async with SessionsDB(database.url) as db:
            await write_and_read(db, 103)
    by_32 = "?4 + 32" if database.kind == "sqlite" else "INSERT INTO messages"
    assert [line for line in caplog.messages if by_32 in line]


async def write_and_read(db: SessionsDB, count: int) -> None:
    await db.store.append("appended", numbered(count))
    await db.store.append("appended", numbered(count, start=count))
    await db.store.save("saved", numbered(count))
    await db.store.save("saved", numbered(2 * count))
    for session in ("appended", "saved"):
        assert await db.store.load(session) == numbered(2 * count)
        [newest, *_] = reversed(await db.broker.history(session, 2 * count))
        assert (newest.seq, newest.content) == (2 * count, f"message {2 * count - 1}")


async def test_an_unknown_session_has_no_transcript_and_an_empty_one_an_empty_one(
    db: SessionsDB,
) -> None:
    await db.store.save("saved", [])
    await db.store.append("appended", [])
    assert await db.store.load("saved") == []
    assert await db.store.load("appended") == []
    assert await db.store.load("unknown") is None
    assert await db.store.version("unknown") is None
    assert sorted(await stored_ids(db)) == ["appended", "saved"]


async def test_a_transcript_can_be_emptied_and_filled_again(db: SessionsDB) -> None:
    await db.store.save("s", numbered(3))
    await db.store.save("s", [])
    assert await db.store.load("s") == []
    await db.store.append("s", [HI])
    assert await db.store.load("s") == [HI]


async def test_loading_gives_fresh_objects(db: SessionsDB) -> None:
    given = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    await db.store.save("s", given)
    given[0]["content"][0]["text"] = "changed"
    first = await db.store.load("s")
    assert first is not None
    first[0]["content"][0]["text"] = "changed"
    first.append(HI)
    assert await db.store.load("s") == [
        {"role": "user", "content": [{"type": "text", "text": "a"}]}
    ]


async def test_the_order_of_keys_is_kept(db: SessionsDB) -> None:
    await db.store.save("s", [{"b": 1, "a": {"d": 2, "c": 3}}])
    await db.store.save("s", [{"a": {"c": 3, "d": 2}, "b": 1}])
    loaded = await db.store.load("s")
    assert json.dumps(loaded) == '[{"a": {"c": 3, "d": 2}, "b": 1}]'


async def test_sessions_survive_reopening(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await db.store.save("s", [HELLO, HI])
        [record] = await db.store.list()
    async with SessionsDB(database.url) as db:
        assert await db.store.load("s") == [HELLO, HI]
        assert await db.store.list() == [record]
        assert await db.store.version("s") == 1


async def test_the_longest_id_and_namespace_fit_every_index(db: SessionsDB) -> None:
    # Random, so that the database cannot compress it.
    letters = random.Random(1)
    astral = [chr(letters.randrange(0x10000, 0x10FFFE)) for _ in range(512 + 64)]
    longest = "".join(astral[:512])
    tenant = db.in_namespace("".join(astral[512:]))
    await tenant.store.save(longest, [HELLO])
    await tenant.store.append(longest, [HI])
    await tenant.broker.send(longest, "hi", idempotency_key="k" * 512)
    assert await tenant.store.load(longest) == [HELLO, HI]
    await tenant.broker.end(longest)
    await tenant.store.delete(longest)
    assert await tenant.store.list() == []


@pytest.mark.parametrize("bad", ["", "x" * 513, "a\x00b", "a\ud800", None, 5, b"id"])
async def test_an_id_no_database_can_keep_is_refused(db: SessionsDB, bad: Any) -> None:
    for call in (
        db.store.load(bad),
        db.store.version(bad),
        db.store.delete(bad),
        db.store.save(bad, [HELLO]),
        db.store.append(bad, [HELLO]),
    ):
        with pytest.raises(InvalidSessionId):
            await call
    assert await db.store.list() == []


# ---- faithful ------------------------------------------------------------------------------------


async def test_all_real_transcripts_come_back_equal_and_have_a_history(
    db: SessionsDB, real_transcripts: Path
) -> None:
    count = 0
    lines = await asyncio.to_thread(real_transcripts.read_text)
    for session in map(json.loads, lines.splitlines()):
        name, transcript = session["session_id"], session["messages"]
        await db.store.save(name, transcript)
        loaded = await db.store.load(name)
        assert json.dumps(loaded) == json.dumps(transcript)
        history = await db.broker.history(name, len(transcript))
        assert [message.role for message in history] == [m["role"] for m in transcript]
        for message, original in zip(history, transcript, strict=True):
            assert original["content"] is None or original["content"] in message.content
            assert ("[tool_use: " in message.content) == ("tool_calls" in original)
        assert await db.store.save(name, transcript) == 1  # equal: not touched
        count += len(transcript)
    assert count == 2_888


@pytest.mark.parametrize("write", ["save", "append"])
async def test_hostile_messages_come_back_equal_and_have_a_history(
    db: SessionsDB, write: str
) -> None:
    transcript = list(HOSTILE.values())
    await getattr(db.store, write)("s", transcript)
    loaded = await db.store.load("s")
    assert loaded == transcript
    assert json.dumps(loaded) == json.dumps(transcript)
    assert len(await db.broker.history("s", 1_000)) == len(transcript)
    assert await db.store.save("s", transcript) == 1  # equal to its stored form


@pytest.fixture
def run(database: Database) -> Iterator[tuple[SessionsDB, Run]]:
    """A database that stays open for all examples of a property."""
    with asyncio.Runner() as runner:
        db = SessionsDB(database.url)
        runner.run(db.__aenter__())
        yield db, runner.run
        runner.run(db.__aexit__(None, None, None))


ids = itertools.count()


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(strategies.messages, max_size=8),
    st.lists(strategies.messages, max_size=4),
    st.integers(0, 12),
)
def test_whatever_json_can_say_survives_the_database(
    run: tuple[SessionsDB, Run],
    first: list[dict[str, Any]],
    more: list[dict[str, Any]],
    kept: int,
) -> None:
    db, until_done = run
    name = f"s{next(ids)}"

    async def example() -> None:
        await db.store.save(name, first)
        assert json.dumps(await db.store.load(name)) == json.dumps(first)
        await db.store.append(name, more)
        assert await db.store.load(name) == first + more
        rewritten = (first + more)[:kept] + more
        await db.store.save(name, rewritten)
        loaded = await db.store.load(name)
        assert loaded == rewritten
        assert json.dumps(loaded) == json.dumps(rewritten)
        history = await db.broker.history(name, 100)
        assert len(history) == len(rewritten)
        for message in history:
            message.model_dump_json()

    until_done(example())


# ---- versions ------------------------------------------------------------------------------------


async def test_the_version_changes_with_every_change_and_with_nothing_else(db: SessionsDB) -> None:
    assert await db.store.save("s", [HELLO]) == 1
    assert await db.store.save("s", [HELLO, HI]) == 2
    assert await db.store.append("s", [HELLO]) == 3
    assert await db.store.save("s", [HELLO]) == 4
    assert await db.store.save("s", [HELLO]) == 4
    assert await db.store.append("s", []) == 4
    await db.broker.send("s", "a message")
    await db.broker.update("s", model="m")
    assert await db.store.version("s") == 4


@pytest.mark.parametrize("write", ["save", "append"])
async def test_a_write_at_the_expected_version_is_made(db: SessionsDB, write: str) -> None:
    call = getattr(db.store, write)
    assert await call("s", [HELLO], expected_version=0) == 1
    assert await call("s", [HELLO, HI], expected_version=1) == 2


@pytest.mark.parametrize("write", ["save", "append"])
@pytest.mark.parametrize("expected", [0, 1, 3, 2**63 - 1])
async def test_a_write_at_another_version_writes_nothing(
    db: SessionsDB, database: Database, write: str, expected: int
) -> None:
    await db.store.save("s", [HELLO])
    await db.store.save("s", [HELLO, HI])
    before = await everything(database)
    for wanted in ([HI], [HELLO, HI], []):
        with pytest.raises(VersionConflict) as refused:
            await getattr(db.store, write)("s", wanted, expected_version=expected)
        assert (refused.value.actual, refused.value.expected) == (2, expected)
    assert await everything(database) == before


async def test_a_number_that_no_database_has_is_refused_as_it_is(db: SessionsDB) -> None:
    await db.store.save("s", [HELLO])
    store: Any = db.store
    for wanted in (2**63, 10**30):
        for call in (
            partial(store.save, "s", [HI], expected_version=wanted),
            partial(store.append, "s", [HI], expected_version=wanted),
            partial(store.pop, "s", expected_version=wanted),
            partial(store.edit, "s", Edit(expected_version=wanted)),
            partial(store.update_state, "s", {}, expected_version=wanted),
            partial(store.replace, "s", wanted, HI),
        ):
            with pytest.raises(InvalidArgument, match=f"must be at most {2**63 - 1}, not {wanted}"):
                await call()
    assert await db.store.load("s") == [HELLO]


@pytest.mark.parametrize("write", ["save", "append"])
async def test_an_expected_version_of_an_unknown_session_creates_nothing(
    db: SessionsDB, database: Database, write: str
) -> None:
    with pytest.raises(VersionConflict, match="session s is at version 0, not 7; load it again"):
        await getattr(db.store, write)("s", [HELLO], expected_version=7)
    assert await db.store.load("s") is None
    assert await database.value("SELECT count(*) FROM sessions") == 0


@pytest.mark.parametrize("write", ["save", "append"])
async def test_of_many_writes_at_one_version_one_is_made(database: Database, write: str) -> None:
    async with SessionsDB(database.url) as one, SessionsDB(database.url) as other:
        for turn in range(5):
            version = await one.store.version("s") or 0
            answers = await asyncio.gather(
                *(
                    getattr(db.store, write)("s", [{f"turn {turn}": i}], expected_version=version)
                    for i, db in enumerate((one, other) * 6)
                ),
                return_exceptions=True,
            )
            made = [answer for answer in answers if not isinstance(answer, VersionConflict)]
            assert made == [version + 1]


@pytest.mark.parametrize("bad", [-1, 1.0, "1", True])
async def test_a_version_is_a_whole_number(db: SessionsDB, bad: Any) -> None:
    for write in (db.store.save, db.store.append):
        with pytest.raises(InvalidArgument, match="expected_version"):
            await write("s", [HELLO], expected_version=bad)


async def everything(database: Database) -> list[list[tuple[Any, ...]]]:
    return [
        sorted(await database.query(f"SELECT * FROM {table}"), key=repr)
        for table in ("sessions", "messages", "mailboxes", "inbox")
    ]


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["save", "append"])
async def test_a_message_that_is_refused_leaves_the_others_unwritten(
    database: Database, write: str
) -> None:
    async with SessionsDB(database.url, limits=Limits(message_bytes=100)) as db:
        await db.store.save("s", [HELLO])
        before = await everything(database)
        for bad in ({"a": b""}, {"content": "x" * 100}, "text"):
            with pytest.raises(InvalidMessage, match="message 1: "):
                await getattr(db.store, write)("s", [HELLO, bad, HI])
            with pytest.raises(InvalidMessage, match="message 1: "):
                await getattr(db.store, write)("new", [HELLO, bad, HI])
        assert await everything(database) == before


# ---- concurrent loads ----------------------------------------------------------------------------


async def test_concurrent_loads_return_the_same_as_loads_alone(database: Database) -> None:
    lengths = {"empty": 0, "one": 1, "edge": 100, "long": 101, "longer": 1_000}
    async with SessionsDB(database.url) as db:
        other = db.in_namespace("other")
        for name, count in lengths.items():
            await db.store.save(name, [{"n": n, "in": [name]} for n in range(count)])
        await db.store.append("one", [HELLO])
        await other.store.save("one", [HI])
        calls = [(one, name) for one in (db, other) for name in (*lengths, "unknown")] * 4
        alone = [await one.store.load(name) for one, name in calls]
        together = await asyncio.gather(*(one.store.load(name) for one, name in calls))
    assert together == alone
    assert [len(one) if one is not None else None for one in together[:6]] == [
        *(0, 2, 100, 101, 1_000),
        None,
    ]
    assert together[6:12] == [None, [HI], None, None, None, None]
    shared = [one for one in together if one and len(one) == 101]
    shared[0][0]["in"].append("changed")
    assert shared[1][0]["in"] == ["long"]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_transcript_that_cannot_be_read_fails_no_read_beside_it(
    database: Database,
) -> None:
    """On PostgreSQL, concurrent loads share a statement, and concurrent pages of history another.
    A policy that fails for one session stands for a damaged row."""
    names = [f"s{number}" for number in range(40)]
    async with SessionsDB(database.url) as db:
        for name in names:
            await db.store.save(name, [HELLO])
    [(owner,)] = await database.query("SELECT current_user")
    for sql in (
        "CREATE FUNCTION damaged(id text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN IF id = 's7'"
        " THEN RAISE EXCEPTION USING ERRCODE = 'XX001'; END IF; RETURN true; END $$",
        "CREATE POLICY readable ON messages USING (damaged(session_id))",
        "ALTER TABLE messages ENABLE ROW LEVEL SECURITY",
        "CREATE ROLE reads_by_policy LOGIN",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO reads_by_policy",
    ):
        await database.query(sql)
    url = str(database.url).replace(f"{owner}@", "reads_by_policy@")
    try:
        async with SessionsDB(url) as db:
            loads = await asyncio.gather(*map(db.store.load, names), return_exceptions=True)
            pages = await asyncio.gather(*map(db.broker.history, names), return_exceptions=True)
    finally:
        await database.query("DROP OWNED BY reads_by_policy")
        await database.query("DROP ROLE reads_by_policy")
    assert [one for one in loads if one != [HELLO]] == [loads[7]]
    assert isinstance(loads[7], StorageError)
    read = [page if isinstance(page, BaseException) else page[0].content for page in pages]
    assert [one for one in read if one != HELLO["content"]] == [read[7]]
    assert isinstance(read[7], StorageError)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_text_that_cannot_be_decoded_keeps_no_read_in_the_past(
    db: SessionsDB, database: Database
) -> None:
    """A statement that failed half-way would keep its snapshot of the file."""
    await db.store.save("bad", [{"role": "user", "content": None}])
    await db.store.save("good", [HELLO])
    await database.query("UPDATE messages SET payload = CAST(x'ff' AS TEXT) WHERE payload <> ''")
    for number in range(4):
        with pytest.raises(StorageError):
            await db.store.load("bad")
        await db.store.append("good", [HELLO])
        assert await db.store.load("good") == [HELLO] * (number + 2)
    await database.query("UPDATE messages SET payload = '{}' WHERE session_id = 'bad'")
    assert await db.store.load("bad") == [{}]


@pytest.mark.skipif(
    sqlalchemy.__version__ < "2.1", reason="SQLAlchemy 2.0 leaves the driver's cursor to its error"
)
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_send_that_fails_half_way_keeps_no_connection_of_the_caller_in_the_past(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("s", channel="cli", peer="ada")
    await db.broker.send("s", "hello", idempotency_key="k")
    await database.query("UPDATE inbox SET fingerprint = CAST(x'ff' AS TEXT)")
    with pytest.raises(StorageError) as failure:
        async with db.engine.connect() as connection:
            await db.broker.send("s", "hello", idempotency_key="k", connection=connection)
    await db.store.append("new", [HELLO])
    async with db.engine.connect() as connection:
        found = await connection.execute(select(sessions.c.id).order_by(sessions.c.id))
        assert list(found.scalars()) == ["new", "s"]
    assert failure.value.__cause__ is not None, "the error keeps the frames of the statement"


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("read", ["load", "history", "entries"])
async def test_a_session_that_is_created_during_a_read_is_seen_with_its_messages_or_not_at_all(
    db: SessionsDB, database: Database, read: str
) -> None:
    made: list[str] = []

    def make_session(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if "FROM messages" in statement or "FROM sessions" not in statement or made:
            return
        made.append(statement)  # the messages were looked for, and none were there
        times = "created_at, updated_at, last_active"
        for sql in (
            f"INSERT INTO sessions (namespace, id, channel, peer, {times}, last_seq, message_count)"
            " VALUES ('default', 's', 'cli', 'ann', now(), now(), now(), 1, 1)",
            "INSERT INTO mailboxes (namespace, session_id) VALUES ('default', 's')",
            "INSERT INTO messages (namespace, session_id, seq, role, content, created_at)"
            " VALUES ('default', 's', 1, 'user', 'hello', now())",
        ):
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, database.query(sql)).result()

    engine = db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", make_session)
    try:
        if read == "load":
            assert await db.store.load("s") == [HELLO]
        elif read == "entries":
            assert [entry.message for entry in await db.store.entries("s")] == [HELLO]
        else:
            assert [message.content for message in await db.broker.history("s")] == ["hello"]
    finally:
        event.remove(engine, "before_cursor_execute", make_session)
    assert made


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("write", ["save", "edit", "append", "append to none", "register"])
async def test_a_session_that_others_create_and_delete_during_a_write_is_created(
    db: SessionsDB, database: Database, write: str
) -> None:
    made: list[str] = []

    def run(sql: str) -> None:
        with ThreadPoolExecutor() as thread:
            thread.submit(asyncio.run, database.query(sql)).result()

    def others_create(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO sessions" in statement and len(made) < 2:
            made.append(statement)
            run(
                "INSERT INTO sessions"
                " (namespace, id, channel, peer, created_at, updated_at, last_active)"
                " VALUES ('default', 's', 'cli', 'ann', now(), now(), now())"
            )

    def others_delete(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO sessions" in statement:
            run("DELETE FROM sessions")

    engine = db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", others_create)
    event.listen(engine, "after_cursor_execute", others_delete)
    try:
        if write == "save":
            version = await db.store.save("s", [HELLO])
        elif write == "edit":
            version = (await db.store.edit("s", Edit(append=[HELLO]))).version
        elif write == "register":
            await db.broker.register("s", channel="cli", peer="ada", exist_ok=True)
            version = await db.store.version("s")
        else:
            expected = 0 if write == "append to none" else None
            version = await db.store.append("s", [HELLO], expected_version=expected)
    finally:
        event.remove(engine, "before_cursor_execute", others_create)
        event.remove(engine, "after_cursor_execute", others_delete)
    assert len(made) == 2
    assert version == 1
    assert await db.store.load("s") == ([] if write == "register" else [HELLO])


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_damaged_page_of_a_file_fails_no_read_beside_it(database: Database) -> None:
    names = [f"s{number}" for number in range(40)]
    async with SessionsDB(database.url) as db:
        for name in names:
            text = "Q" * 100_000 if name == "s7" else "hello"
            await db.store.save(name, [{"role": "user", "content": text}])
    damage_chain_of_pages(database.path, b"Q")
    async with SessionsDB(database.url) as db:
        loads = await asyncio.gather(*map(db.store.load, names), return_exceptions=True)
        pages = await asyncio.gather(*map(db.broker.history, names), return_exceptions=True)
    assert [one for one in loads if one != [HELLO]] == [loads[7]]
    read = [page if isinstance(page, BaseException) else page[0].content for page in pages]
    assert [one for one in read if one != "hello"] == [read[7]]
    for error in (loads[7], read[7]):
        assert isinstance(error, StorageError)
        assert "restore a backup" in str(error)


def damage_chain_of_pages(path: Path, filling: bytes) -> None:
    """Let a page of a long value lead to a page behind the end of the file."""
    size = 4096
    data = path.read_bytes()
    number = next(
        start
        for start in range(0, len(data), size)
        if data[start + 4 : start + size] == filling * (size - 4)
    )
    with path.open("r+b") as file:
        file.seek(number)
        file.write(b"\x7f\xff\xff\xff")


# ---- concurrent appends --------------------------------------------------------------------------


async def test_concurrent_appends_lose_nothing_and_have_versions_of_their_own(
    database: Database,
) -> None:
    async with SessionsDB(database.url) as one, SessionsDB(database.url) as other:
        versions = await asyncio.gather(
            *(
                db.store.append("s", [{"n": n, "of": i} for n in range(3)])
                for i, db in enumerate((one, other) * 50)
            )
        )
        assert sorted(versions) == list(range(1, 101))
        loaded = await one.store.load("s")
        assert loaded is not None
        assert len(loaded) == 300
        # The version gives the order of appends: a lower version comes before.
        expected = [
            {"n": n, "of": i}
            for i in sorted(range(100), key=lambda i: versions[i])
            for n in range(3)
        ]
        assert loaded == expected
        assert await one.store.version("s") == 100
    seqs = await database.query("SELECT seq FROM messages ORDER BY seq")
    assert seqs == [(seq,) for seq in range(1, 301)]


async def test_concurrent_appends_to_many_new_sessions_create_each_once(
    database: Database,
) -> None:
    async with SessionsDB(database.url) as one, SessionsDB(database.url) as other:
        names = [f"s{i}" for i in range(20)]
        order = random.Random(2)
        await asyncio.gather(
            *(
                db.store.append(name, [{"n": n}])
                for n, db in enumerate((one, other) * 3)
                for name in order.sample(names, len(names))
            )
        )
        for name in names:
            loaded = await one.store.load(name)
            assert sorted(m["n"] for m in loaded or ()) == [0, 1, 2, 3, 4, 5]
            assert await one.store.version(name) == 6


async def test_saves_and_appends_at_the_same_time_leave_a_whole_transcript(
    database: Database,
) -> None:
    async with SessionsDB(database.url) as one, SessionsDB(database.url) as other:
        await asyncio.gather(
            *(one.store.save("s", [{"save": i}] * 4) for i in range(10)),
            *(other.store.append("s", [{"append": i}] * 2) for i in range(10)),
        )
        loaded = await one.store.load("s")
        assert loaded is not None
        records = await one.store.list()
        assert [record.message_count for record in records] == [len(loaded)]
        runs = [len(list(same)) for _, same in itertools.groupby(loaded, key=repr)]
        assert runs[0] in (2, 4)
        assert set(runs[1:]) <= {2}


# ---- what a save writes --------------------------------------------------------------------------

COUNTED = ("sessions", "messages", "mailboxes", "inbox")


async def count_writes(database: Database) -> None:
    """Let triggers of the database record every written row."""
    await database.query("CREATE TABLE writes (name text, kind text)")
    if database.kind == "postgresql":
        await database.query(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO writes VALUES (TG_TABLE_NAME, lower(TG_OP)); RETURN NULL; END $$"
        )
    for table, kind in itertools.product(COUNTED, ("insert", "update", "delete")):
        action = (
            "EXECUTE FUNCTION note()"
            if database.kind == "postgresql"
            else f"BEGIN INSERT INTO writes VALUES ('{table}', '{kind}'); END"
        )
        await database.query(
            f"CREATE TRIGGER note_{table}_{kind} AFTER {kind} ON {table} FOR EACH ROW {action}"
        )


async def writes(database: Database) -> dict[str, int]:
    """The rows written since the last call."""
    rows = await database.query("SELECT name, kind, count(*) FROM writes GROUP BY 1, 2")
    await database.query("DELETE FROM writes")
    return {f"{kind} {name}": count for name, kind, count in rows}


async def test_a_save_is_at_one_moment(db: SessionsDB) -> None:
    """last_active is the time of the last change of the transcript, to the microsecond."""
    for text in ("one", "two", "three"):
        await db.store.save("chat", [{"role": "user", "content": text}])
        [record] = await db.store.list()
        assert (await db.broker.get("chat")).last_active == record.updated_at


async def test_a_save_writes_what_changed_and_not_what_was_kept(
    db: SessionsDB, database: Database
) -> None:
    transcript = numbered(10_000)
    await db.store.save("s", transcript)
    await count_writes(database)

    await db.store.save("s", transcript)
    assert await writes(database) == {}

    transcript = [*transcript, HELLO, HI]
    await db.store.save("s", transcript)
    assert await writes(database) == {"insert messages": 2, "update sessions": 1}

    await db.store.append("s", [HELLO, HI])
    assert await writes(database) == {"insert messages": 2, "update sessions": 1}
    transcript = [*transcript, HELLO, HI]

    transcript[5_000] = {"role": "user", "content": "changed"}
    await db.store.save("s", transcript)
    assert await writes(database) == {
        "delete messages": 5_004,
        "insert messages": 5_004,
        "update sessions": 1,
    }

    transcript = transcript[:9_000]
    await db.store.save("s", transcript)
    assert await writes(database) == {"delete messages": 1_004, "update sessions": 1}

    await db.store.save("s", [])
    assert await writes(database) == {"delete messages": 9_000, "update sessions": 1}


async def test_a_new_rendering_of_the_same_messages_rewrites_nothing(
    db: SessionsDB, database: Database
) -> None:
    transcript = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, HELLO]
    await db.store.save("s", transcript)
    await database.query("UPDATE messages SET content = 'as it was rendered once' WHERE seq = 1")
    await count_writes(database)
    await db.store.save("s", transcript)
    assert await writes(database) == {}


async def test_a_seq_is_never_given_twice(db: SessionsDB) -> None:
    async def seqs() -> list[int | None]:
        return [message.seq for message in await db.broker.history("s")]

    await db.store.save("s", numbered(4))
    assert await seqs() == [1, 2, 3, 4]
    await db.store.save("s", numbered(2))
    assert await seqs() == [1, 2]
    await db.store.append("s", [HELLO])
    assert await seqs() == [1, 2, 5]
    await db.store.save("s", [*numbered(1), HI, HI])
    assert await seqs() == [1, 6, 7]
    await db.store.save("s", [])
    await db.store.save("s", numbered(1))
    assert await seqs() == [8]


async def test_a_cursor_stays_true_over_a_rewrite(db: SessionsDB) -> None:
    await db.store.save("s", numbered(4))
    last = (await db.broker.history("s"))[-1].seq
    await db.store.save("s", [*numbered(2), HELLO, HI])
    assert [m.content for m in await db.broker.history("s", after=last)] == ["hello", "hi"]


# ---- list ----------------------------------------------------------------------------------------


async def test_a_list_knows_all_and_counts_their_messages(db: SessionsDB) -> None:
    for name, count in (("a", 3), ("b", 0), ("c", 1)):
        await db.store.save(name, numbered(count))
    await db.broker.register("d", channel="cli", peer="ann")
    assert {r.id: r.message_count for r in await db.store.list()} == {
        "a": 3,
        "b": 0,
        "c": 1,
        "d": 0,
    }


async def test_a_list_is_by_last_change_newest_last(db: SessionsDB) -> None:
    for name in ("a", "b", "c"):
        await db.store.save(name, [HELLO])
    assert await stored_ids(db) == ["a", "b", "c"]
    await db.store.append("a", [HI])
    assert await stored_ids(db) == ["b", "c", "a"]
    await db.store.save("b", [HI])
    assert await stored_ids(db) == ["c", "a", "b"]
    await db.store.save("c", [HELLO])  # equal
    await db.broker.send("c", "hello")  # does not change the transcript
    await db.broker.update("c", model="m")
    assert await stored_ids(db) == ["c", "a", "b"]


def moment(database: Database, text: str) -> str:
    """A time as an SQL literal, in the form that the database stores."""
    return f"'{text}.000000'" if database.kind == "sqlite" else f"timestamptz '{text}+00'"


async def test_equal_times_are_ordered_by_id_as_code_points(
    db: SessionsDB, database: Database
) -> None:
    names = ["z", "Z", "a", "_", "é", "e\u0301", "中", "\uffff", "😀", "10", "9", "ß", "ss", "İ"]
    for name in random.Random(3).sample(names, len(names)):
        await db.store.save(name, [])
    then = moment(database, "2024-01-02 03:04:05")
    await database.query(f"UPDATE sessions SET updated_at = {then}, last_active = {then}")
    assert await stored_ids(db) == sorted(names)
    pages = [await db.store.list_paginated(ListOptions(offset=i, limit=1)) for i in range(14)]
    assert [record.id for [record] in pages] == sorted(names)
    assert [summary.id for summary in await db.broker.list()] == sorted(names)
    assert [s.id for s in await db.broker.list(after="Z", limit=2)] == ["_", "a"]


async def test_times_are_aware_in_utc_and_true(db: SessionsDB) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    await db.store.save("s", [HELLO])
    await db.broker.send("s", "hi")
    [record] = await db.store.list()
    [message] = await db.broker.history("s")
    [summary] = await db.broker.list()
    after = datetime.now(UTC) + timedelta(seconds=5)
    for time in (
        record.created_at,
        record.updated_at,
        message.timestamp,
        summary.created_at,
        summary.last_active,
    ):
        assert time.utcoffset() == timedelta(0)
        assert before <= time <= after
    assert '"updated_at":"20' in record.model_dump_json()
    assert record.model_dump_json().endswith('Z"}')


async def test_created_at_is_kept_over_a_save(db: SessionsDB) -> None:
    await db.store.save("s", [HELLO])
    [first] = await db.store.list()
    await db.store.save("s", [HI])
    await db.store.append("s", [HI])
    [last] = await db.store.list()
    assert last.created_at == first.created_at
    assert last.updated_at > first.updated_at


@pytest.mark.parametrize("write", ["save", "append"])
async def test_a_clock_that_was_set_back_does_not_move_a_session_back(
    db: SessionsDB, database: Database, write: str
) -> None:
    for name in ("a", "b", "c"):
        await db.store.save(name, [HELLO])
    ahead = moment(database, "2100-01-01 00:00:00")
    await database.query(
        f"UPDATE sessions SET updated_at = {ahead}, last_active = {ahead} WHERE id = 'b'"
    )
    await getattr(db.store, write)("b", [HI])
    await getattr(db.store, write)("c", [HI])
    assert await stored_ids(db) == ["a", "c", "b"]
    assert [summary.id for summary in await db.broker.list()] == ["a", "c", "b"]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_sqlite_stores_every_time_in_one_form_that_sorts(database: Database) -> None:
    ticks = iter(datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=i) for i in range(1_000))
    async with SessionsDB(database.url, clock=lambda: next(ticks)) as db:
        await db.store.save("a", [HELLO])
        await db.store.append("a", [HELLO])
        await db.store.save("a", [HELLO, HI])
        await db.broker.register("b", channel="cli", peer="ann")
        await db.broker.send("a", "hello")
        await db.broker.send("b", "hello")
        await db.broker.spawn("b", SpawnRequest(prompt="go"))
        await db.broker.end("b")
        [*_, last] = await db.store.list()
        assert last.updated_at.microsecond == 0
    times = []
    for table, columns in {
        "sessions": ("created_at", "updated_at", "last_active", "ended_at"),
        "messages": ("created_at",),
        "mailboxes": ("ready_at",),
        "inbox": ("enqueued_at", "finished_at"),
    }.items():
        for column in columns:
            times += await database.query(
                f"SELECT '{table}.{column}', {column} FROM {table} WHERE {column} IS NOT NULL"
            )
    assert {name for name, _ in times} >= {"sessions.ended_at", "inbox.finished_at"}
    for name, time in times:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", time), name


# ---- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5, 10, 11, None])
async def test_pages_make_up_the_list(db: SessionsDB, size: int | None) -> None:
    for i in range(10):
        await db.store.save(f"s{i}", [])
    everything = await db.store.list()
    assert len(everything) == 10
    pages: list[Any] = []
    while page := await db.store.list_paginated(ListOptions(offset=len(pages), limit=size)):
        assert len(page) <= (size or 10)
        pages += page
    assert pages == everything


@pytest.mark.parametrize(
    ("offset", "limit", "found"),
    [
        (0, 0, slice(0, 0)),
        (0, 4, slice(0, 4)),
        (3, 0, slice(0, 0)),
        (3, 1, slice(3, 4)),
        (3, 2, slice(3, 4)),
        (3, None, slice(3, 4)),
        (4, 1, slice(0, 0)),
        (4, None, slice(0, 0)),
        (2**70, None, slice(0, 0)),
        (2**70, 2**70, slice(0, 0)),
        (0, 2**70, slice(0, 4)),
    ],
)
async def test_a_page_over_the_edge_is_cut_off(
    db: SessionsDB, offset: int, limit: int | None, found: slice
) -> None:
    for i in range(4):
        await db.store.save(f"s{i}", [])
    page = await db.store.list_paginated(ListOptions(offset=offset, limit=limit))
    assert page == (await db.store.list())[found]


@pytest.mark.parametrize("bad", [{"offset": -1}, {"limit": -1}, {"offset": 0.5}, {"limit": "x"}])
def test_a_page_that_can_not_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ListOptions(**bad)


# ---- delete --------------------------------------------------------------------------------------


async def test_a_deleted_session_is_gone_with_all_it_had(
    db: SessionsDB, database: Database
) -> None:
    await db.store.save("s", [HELLO])
    await db.broker.send("s", "hello")
    await db.store.save("other", [HI])
    await db.store.delete("s")
    assert await db.store.load("s") is None
    assert await stored_ids(db) == ["other"]
    with pytest.raises(UnknownSession, match="unknown session: s"):
        await db.broker.history("s")
    for table, left in (("sessions", 1), ("messages", 1), ("mailboxes", 1), ("inbox", 0)):
        assert await database.value(f"SELECT count(*) FROM {table}") == left


async def test_deleting_an_unknown_session_changes_nothing(
    db: SessionsDB, database: Database
) -> None:
    await db.store.save("s", [HELLO])
    before = await everything(database)
    for children in ("detach", "cascade", "refuse"):
        await db.store.delete("unknown", children=children)
    assert await everything(database) == before


async def test_a_deleted_session_can_be_created_again_and_is_empty(db: SessionsDB) -> None:
    await db.store.save("s", numbered(3))
    await db.store.delete("s")
    assert await db.store.append("s", [HI], expected_version=0) == 1
    assert await db.store.load("s") == [HI]


async def grow(db: SessionsDB) -> None:
    r"""A tree.

    ::

        top - a - b - d - e
              |    \\ c
              other
    """
    await db.broker.register("top", channel="cli", peer="ann")
    for parent, child in (
        ("top", "a"),
        ("a", "b"),
        ("a", "other"),
        ("b", "c"),
        ("b", "d"),
        ("d", "e"),
    ):
        await db.broker.register(child, channel="cli", peer="ann", parent=parent)
        await db.store.save(child, [HELLO])
        await db.broker.send(child, "hello")


async def shape(database: Database) -> dict[str, tuple[str | None, str | None, int]]:
    """Each session's parent, root and depth."""
    rows = await database.query("SELECT id, parent_id, root_id, depth FROM sessions")
    return {name: (parent, root, depth) for name, parent, root, depth in rows}


ABOVE = {
    "top": (None, None, 0),
    "a": ("top", "top", 1),
    "other": ("a", "top", 2),
}


async def tree_of(db: SessionsDB, root: str) -> set[str]:
    return {summary.id for summary in await db.broker.list(root=root)}


async def test_detached_children_become_roots_of_their_subtrees(
    db: SessionsDB, database: Database
) -> None:
    await grow(db)
    await db.store.delete("b")
    assert await shape(database) == ABOVE | {
        "c": (None, None, 0),
        "d": (None, None, 0),
        "e": ("d", "d", 1),
    }
    assert await tree_of(db, "top") == {"top", "a", "other"}
    assert await tree_of(db, "d") == {"d", "e"}
    assert await tree_of(db, "c") == {"c"}
    assert (await db.broker.get("c")).parent is None
    assert await db.store.load("e") == [HELLO]
    assert (await db.broker.get("e")).pending == 1


async def test_a_detached_child_may_be_as_deep_a_tree_as_any(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(depth=2)) as db:
        await db.broker.register("a", channel="cli", peer="ann")
        await db.broker.register("b", channel="cli", peer="ann", parent="a")
        await db.broker.register("c", channel="cli", peer="ann", parent="b")
        with pytest.raises(SpawnDenied, match="depth 3"):
            await db.broker.spawn("c", SpawnRequest(prompt="go"))
        await db.store.delete("a")
        child = await db.broker.spawn("c", SpawnRequest(prompt="go"))
        with pytest.raises(SpawnDenied, match="depth 3"):
            await db.broker.spawn(child.id, SpawnRequest(prompt="go"))


async def test_a_cascade_takes_all_below_and_nothing_else(
    db: SessionsDB, database: Database
) -> None:
    await grow(db)
    await db.store.delete("b", children="cascade")
    assert await shape(database) == ABOVE
    for table, left in (("messages", 2), ("mailboxes", 3), ("inbox", 2)):
        assert await database.value(f"SELECT count(*) FROM {table}") == left


async def test_a_session_with_children_is_not_deleted_if_that_is_refused(
    db: SessionsDB, database: Database
) -> None:
    await grow(db)
    before = await everything(database)
    with pytest.raises(SessionHasChildren, match="session has children: b"):
        await db.store.delete("b", children="refuse")
    assert await everything(database) == before
    await db.store.delete("c", children="refuse")
    assert await db.store.load("c") is None


async def test_delete_has_three_choices_for_children(db: SessionsDB) -> None:
    with pytest.raises(InvalidArgument, match="detach"):
        await db.store.delete("s", children="orphan")


@pytest.mark.parametrize("children", ["cascade", "detach"])
async def test_a_family_of_thousands_is_deleted_or_detached(
    db: SessionsDB, database: Database, children: Any
) -> None:
    await db.broker.register("top", channel="cli", peer="ann")
    numbers = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 2000)"
    )
    now = moment(database, "2024-01-01 00:00:00")
    # Every second session is a child of top. The others are children of it.
    await database.query(
        "INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer,"
        f" created_at, updated_at, last_active) {numbers} SELECT 'default', 's' || n,"
        " CASE WHEN n % 2 = 0 THEN 'top' ELSE 's' || (n + 1) END, 'top', 2 - (n + 1) % 2,"
        f" 'cli', 'ann', {now}, {now}, {now} FROM numbers ORDER BY n % 2"
    )
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id)"
        " SELECT namespace, id FROM sessions WHERE id <> 'top'"
    )
    await db.store.delete("top", children=children)
    expected = {}
    if children == "detach":
        for n in range(2, 2001, 2):
            expected[f"s{n}"] = (None, None, 0)
            expected[f"s{n - 1}"] = (f"s{n}", f"s{n}", 1)
    assert await shape(database) == expected


# ---- namespaces ----------------------------------------------------------------------------------


async def test_a_namespace_sees_and_touches_only_its_own(
    db: SessionsDB, database: Database
) -> None:
    acme = db.in_namespace("acme")
    await grow(db)
    before = await everything(database)
    assert await acme.store.load("top") is None
    assert await acme.store.version("top") is None
    assert await acme.store.list() == []
    await acme.store.delete("top", children="cascade")
    for write in (acme.store.save, acme.store.append):
        with pytest.raises(VersionConflict, match="at version 0"):
            await write("a", [HI], expected_version=1)
    assert await everything(database) == before

    await acme.store.save("a", [HI])
    await acme.store.append("a", [HI])
    assert await db.store.load("a") == [HELLO]
    assert await acme.store.load("a") == [HI, HI]
    assert await stored_ids(acme) == ["a"]
    assert len(await db.store.list()) == 7
    await db.store.delete("top", children="cascade")
    assert await acme.store.load("a") == [HI, HI]
    assert await stored_ids(db) == []
