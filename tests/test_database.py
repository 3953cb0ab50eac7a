"""``SessionsDB``: URLs and options, opening and closing, and errors at the opening."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    Receipt,
    SchemaOutOfDate,
    SessionsDB,
    SessionsDBError,
    SpawnRequest,
    StorageError,
)
from sessionsdb.database import open_database_of
from sessionsdb.engine import urls
from tests.support.pools import checked_out
from tests.support.waiting import until

DRIVER_THREAD = "_connection_worker_thread"
HELLO = {"role": "user", "content": "hello"}


# ---- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["sqlite://b.db", "sqlite://b.db/x", "sqlite://ada:secret@/x", "sqlite+aiosqlite://h/x"]
)
def test_a_sqlite_url_with_two_slashes_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(InvalidArgument, match="sqlite:///FILE with three slashes") as refused:
        SessionsDB(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:///x.db", "sqlite+aiosqlite"),
        ("sqlite://", "sqlite+aiosqlite"),
        ("postgresql://user@host/name", "postgresql+asyncpg"),
        ("postgres://user@host/name", "postgresql+asyncpg"),
        ("postgresql+asyncpg://user@host/name", "postgresql+asyncpg"),
    ],
)
async def test_a_plain_url_is_given_its_async_driver(given: str, driver: str) -> None:
    engine = SessionsDB(given).engine
    assert engine.url.drivername == driver
    assert engine.url.database == make_url(given).database
    await engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user@host/name",
        "postgresql+psycopg2://user@host/name",
        "sqlite+pysqlite:///x.db",
        "x.db",
        "",
        None,
        5,
        Path("x.db"),
    ],
)
def test_what_cannot_be_served_is_refused_with_what_can(url: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"sqlite:///?.*postgresql://"):
        SessionsDB(url)


def test_libpqs_name_for_encryption_is_understood() -> None:
    url = urls.parse("postgresql://user@host/name?sslmode=require&host=h2")
    assert url.query == {"ssl": "require", "host": "h2"}


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+asyncpg"])
def test_a_parameter_of_the_url_that_the_driver_does_not_know_is_refused(driver: str) -> None:
    with pytest.raises(InvalidArgument, match="can't be given there: channel_binding; these can"):
        SessionsDB(f"{driver}://user@host/name?channel_binding=require&host=h2")


@pytest.mark.parametrize(("url", "milliseconds"), [("", 10_000), ("?timeout=0.25", 250)])
async def test_how_long_a_write_waits_for_anothers_is_in_the_url(
    tmp_path: Path, url: str, milliseconds: int
) -> None:
    async with SessionsDB(f"sqlite:///{tmp_path}/x.db{url}") as db, db.engine.connect() as c:
        assert (await c.execute(text("PRAGMA busy_timeout"))).scalar() == milliseconds


@pytest.mark.parametrize("given", ["soon", "-1", "1e9", "nan"])
def test_a_timeout_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(InvalidArgument, match="timeout in the database URL"):
        SessionsDB(f"sqlite:///x.db?timeout={given}")


def test_arguments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="durability"):
        SessionsDB("sqlite://", durability="fast")
    for namespace in ("", "x" * 65, None):
        with pytest.raises(InvalidArgument, match="namespace"):
            SessionsDB("sqlite://", namespace=namespace)


async def test_a_database_in_memory_does_everything() -> None:
    async with SessionsDB("sqlite://") as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        await asyncio.gather(
            *(db.store.append("chat", [HELLO]) for _ in range(20)),
            *(db.broker.send("chat", "hello") for _ in range(20)),
            *(db.broker.spawn("chat", SpawnRequest(prompt="go")) for _ in range(20)),
            *(db.broker.history("chat") for _ in range(20)),
        )
        details = await db.broker.get("chat")
        assert (details.message_count, details.pending) == (20, 20)
        assert len(await db.broker.list(root="chat")) == 21
        async with db.engine.begin() as connection:
            await db.broker.send("chat", "with mine", connection=connection)
        assert (await db.broker.get("chat")).pending == 21
    async with SessionsDB("sqlite://") as other:
        assert await other.broker.list() == []


# ---- opening and closing -------------------------------------------------------------------------

USES = {
    "load": lambda db: db.store.load("chat"),
    "save": lambda db: db.store.save("chat", [HELLO]),
    "append": lambda db: db.store.append("chat", [HELLO]),
    "list": lambda db: db.broker.list(),
    "send": lambda db: db.broker.send("chat", "hello"),
    "spawn": lambda db: db.broker.spawn("chat", SpawnRequest(prompt="go")),
    "wait": lambda db: db.broker.wait(Receipt(session_id="chat", position=1)),
    "end": lambda db: db.broker.end("chat"),
}


async def test_a_handle_used_behind_its_block_says_so(database: Database) -> None:
    db = SessionsDB(database.url)
    async with db:
        await db.broker.register("chat", channel="cli", peer="ada")
    for use in USES.values():
        with pytest.raises(SessionsDBError, match=r"not open.*async with"):
            await asyncio.wait_for(use(db), 5)


async def test_a_handle_can_be_entered_again(database: Database) -> None:
    db = SessionsDB(database.url)
    for round in range(3):
        async with db:
            assert await db.store.append("chat", [HELLO]) == round + 1
            await db.broker.register("live", channel="cli", peer="ada", exist_ok=True)
            receipt = await db.broker.send("live", "hello")
            assert receipt.position == round + 1
            outcome = await db.broker.wait(receipt, timeout=0.01)
            assert outcome.status == "pending"


def test_a_handle_can_be_entered_again_in_another_event_loop(database: Database) -> None:
    db = SessionsDB(database.url)

    async def use(round: int) -> None:
        async with db:
            await db.broker.register("live", channel="cli", peer="ada", exist_ok=True)
            versions = await asyncio.gather(*(db.store.append("chat", [HELLO]) for _ in range(9)))
            assert max(versions) == (round + 1) * 9
            receipt = await db.broker.send("live", "hello")
            await db.broker.wait(receipt, timeout=0.01)

    for round in range(3):
        asyncio.run(use(round))


async def test_a_handle_may_be_entered_by_several_at_once(database: Database) -> None:
    db = SessionsDB(database.url)

    async def use(n: int) -> int:
        async with db:
            return await db.store.append(f"chat-{n}", [HELLO])

    assert await asyncio.gather(*(use(n) for n in range(10))) == [1] * 10


async def test_a_namespaces_handle_outlives_the_one_it_came_from(database: Database) -> None:
    db = SessionsDB(database.url)
    async with db:
        other = db.in_namespace("acme")
        assert (other.namespace, db.namespace) == ("acme", "default")
        assert other.engine is db.engine
        await other.__aenter__()
    assert await other.store.append("chat", [HELLO]) == 1
    await other.__aexit__(None, None, None)
    with pytest.raises(SessionsDBError, match="not open"):
        await other.store.load("chat")


async def test_leaving_lets_go_of_every_connection(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        receipt = await db.broker.send("chat", "hello")
        await db.broker.wait(receipt, timeout=0.01)
    assert checked_out(db.engine) == 0
    # A thread runs a few instructions more after it has reported that its connection is closed.
    await until(lambda: not [t for t in threading.enumerate() if DRIVER_THREAD in t.name])
    if database.kind == "postgresql":
        assert await connections(database) == 0


async def connections(database: Database) -> int:
    for _ in range(200):  # the server takes a moment to notice
        count = await database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sessionsdb'"
            " AND datname = current_database()"
        )
        if count == 0:
            break
        await asyncio.sleep(0.01)
    return int(count)


async def test_a_failed_entry_lets_go_of_every_connection(empty_database: Database) -> None:
    db = SessionsDB(empty_database.url, migrate=False)
    for _ in range(2):
        with pytest.raises(SchemaOutOfDate, match="sessionsdb migrate"):
            await db.__aenter__()
        assert checked_out(db.engine) == 0
        if empty_database.kind == "postgresql":
            assert await connections(empty_database) == 0
    async with SessionsDB(empty_database.url, migrate=True):
        pass
    async with db:
        assert await db.broker.list() == []


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite:///file:{}?uri=true"])
async def test_a_check_of_a_missing_file_makes_no_file(tmp_path: Path, form: str) -> None:
    file = tmp_path / "sessions.db"
    with pytest.raises(SchemaOutOfDate, match=r"sessions\.db does not exist.*sessionsdb migrate"):
        await SessionsDB(form.format(file), migrate=False).open()
    assert not file.exists()


async def test_migrate_is_on_for_sqlite_and_off_for_postgresql(empty_database: Database) -> None:
    if empty_database.kind == "postgresql":
        with pytest.raises(SchemaOutOfDate, match="no sessionsdb tables"):
            async with SessionsDB(empty_database.url):
                pass
    else:
        async with SessionsDB(empty_database.url) as db:
            assert await db.broker.list() == []


# ---- options -------------------------------------------------------------------------------------


async def setting(db: SessionsDB, statement: str) -> Any:
    async with db.engine.connect() as connection:
        return (await connection.execute(text(statement))).scalar()


@pytest.mark.parametrize(("durability", "expected"), [("full", (2, "on")), ("normal", (1, "off"))])
async def test_durability_is_full_unless_said_otherwise(
    database: Database, durability: Any, expected: tuple[int, str]
) -> None:
    async with SessionsDB(database.url, durability=durability) as db:
        if database.kind == "sqlite":
            assert await setting(db, "PRAGMA synchronous") == expected[0]
            writer = open_database_of(db).runner._writer
            used = await writer.run(lambda: writer.raw.execute("PRAGMA synchronous").fetchone())
            assert used == (expected[0],)
        else:
            assert await setting(db, "SHOW synchronous_commit") == expected[1]
    async with SessionsDB(database.url) as db:
        if database.kind == "sqlite":
            assert await setting(db, "PRAGMA synchronous") == 2
        else:
            assert await setting(db, "SHOW synchronous_commit") == "on"


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_behind_a_transaction_pooler_nothing_is_kept_on_a_connection(
    database: Database,
) -> None:
    with pytest.raises(InvalidArgument, match="pooler"):
        SessionsDB(database.url, transaction_pooler=True, durability="normal")
    async with SessionsDB(database.url, transaction_pooler=True) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        for n in range(3):
            assert (await db.broker.send("chat", "hello")).position == n + 1
            assert await db.store.append("chat", [HELLO]) == n + 2
        names = await setting(
            db, "SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE '__sessionsdb_%'"
        )
        assert names == 0
        async with db.engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            assert driver._config.statement_cache_size == 0


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_durability_of_a_brought_engine_is_its_owners(database: Database) -> None:
    engine = create_async_engine(urls.parse(database.url))
    with pytest.raises(InvalidArgument, match="synchronous_commit"):
        SessionsDB(engine, durability="normal")
    await engine.dispose()


# ---- SQLite files --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"\0" * 4096 + b"x"])
async def test_a_file_that_is_no_database_is_a_storage_error(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not a database") as refused:
        async with SessionsDB(f"sqlite:///{path}"):
            pass
    assert isinstance(refused.value.__cause__, sqlite3.DatabaseError)
    assert path.read_bytes() == content


async def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open") as refused:
        async with SessionsDB(f"sqlite:///{tmp_path}/nowhere/x.db"):
            pass
    assert isinstance(refused.value.__cause__, sqlite3.OperationalError)


async def test_a_refused_opening_does_not_wait_for_the_threads_of_the_loop(tmp_path: Path) -> None:
    """Blocking tools of handlers may hold all of them."""
    loop, go = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    tool = asyncio.create_task(asyncio.to_thread(go.wait, 60))
    try:
        async with asyncio.timeout(30):
            with pytest.raises(StorageError, match="unable to open"):
                await SessionsDB(f"sqlite:///{tmp_path}/nowhere/x.db").open()
    finally:
        go.set()
        await tool


async def test_a_file_with_odd_characters_in_its_name_is_opened(tmp_path: Path) -> None:
    for written, name in (
        ("with space.db", "with space.db"),
        ("é🌳.db", "é🌳.db"),
        ("per%25cent.db", "per%cent.db"),  # a URL writes it so
    ):
        async with SessionsDB(f"sqlite:///{tmp_path}/{written}") as db:
            await db.store.append("chat", [HELLO])
        assert name in files(tmp_path)


@contextmanager
def write_lock(database: Database) -> Iterator[sqlite3.Connection]:
    """A write transaction of another process."""
    connection = sqlite3.connect(database.path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_write_lock_held_too_long_is_a_storage_error(database: Database) -> None:
    async with SessionsDB(f"{database.url}?timeout=0.2") as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        with write_lock(database):
            assert await db.store.load("chat") == []  # a reader does not wait for a writer
            answers = await asyncio.wait_for(
                asyncio.gather(
                    *(db.store.save(f"s-{n}", [HELLO]) for n in range(30)),
                    *(db.broker.send("chat", "hello") for _ in range(30)),
                    return_exceptions=True,
                ),
                5,  # they wait for the lock together, not one after the other
            )
            for answer in answers:
                assert isinstance(answer, StorageError)
                assert "database is locked" in str(answer)
                assert isinstance(answer.__cause__, sqlite3.OperationalError)
        assert (await db.broker.send("chat", "hello")).position == 1
        assert await db.store.list() != []


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_write_waits_for_anothers_transaction(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        with write_lock(database) as other:
            send = asyncio.create_task(db.broker.send("chat", "hello"))
            read = await db.broker.get("chat")
            assert read.pending == 0
            assert not send.done()
            other.execute("COMMIT")
            assert (await asyncio.wait_for(send, 10)).position == 1


async def send_alone(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")


async def send_in_a_transaction(db: SessionsDB) -> None:
    async with db.engine.begin() as connection:
        await db.broker.send("chat", "hello", connection=connection)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("send", [send_alone, send_in_a_transaction])
async def test_a_write_soon_follows_a_long_transaction_of_another_process(
    database: Database, send: Callable[[SessionsDB], Awaitable[None]]
) -> None:
    """SQLite's own wait tries after 328 and after 428 ms."""

    async def seconds_after_release() -> float:
        with write_lock(database) as other:
            waiting = asyncio.ensure_future(send(db))
            await asyncio.sleep(0.37)
            other.execute("COMMIT")
            released = time.perf_counter()
            await waiting
        return time.perf_counter() - released

    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        assert min([await seconds_after_release() for _ in range(5)]) < 0.045


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_new_file_can_be_opened_by_many_at_once(empty_database: Database) -> None:
    async def use(n: int) -> None:
        async with SessionsDB(empty_database.url) as db:
            await db.store.append(f"chat-{n}", [HELLO])

    await asyncio.gather(*(use(n) for n in range(5)))
    async with SessionsDB(empty_database.url) as db:
        assert len(await db.store.list()) == 5


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_closed_file_is_one_file(database: Database) -> None:
    """The write-ahead log is empty: the file alone can be copied."""
    async with SessionsDB(database.url) as db:
        await db.store.append("chat", [HELLO])
    assert not [name for name in files(database.path.parent) if name.endswith("-wal")]


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# ---- PostgreSQL ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_database_that_is_not_there_is_a_storage_error(database: Database) -> None:
    url = database.url.replace(f"/{make_url(database.url).database}?", "/nonesuch?")
    with pytest.raises(StorageError, match="nonesuch") as refused:
        async with SessionsDB(url):
            pass
    cause = refused.value.__cause__
    assert cause is not None
    assert type(cause).__module__.startswith("asyncpg")
