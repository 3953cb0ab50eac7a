"""Reads of a streaming standby: one that lags, one that is gone, one that hangs, one that was
promoted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from devtools.databases import Database
from devtools.postgres_cluster import PostgresCluster, postgres_cluster
from sessionsdb import DamagedValue, InvalidArgument, SessionsDB, UnknownSession, sync
from sessionsdb.database import open_database_of
from sessionsdb.engine.postgresql import primary_check
from sessionsdb.engine.postgresql.log_position import log_position
from sessionsdb.handlers import echo
from sessionsdb.reports import queries
from sessionsdb.runtime import standby_reads
from sessionsdb.runtime.standby_reads import StandbyReads
from tests.support.command_line import CommandLine
from tests.support.waiting import until

NAME = "agents"
HELLO = {"role": "user", "content": "hello"}
NEWS = {"role": "user", "content": "news"}


@pytest.fixture(scope="module")
def servers() -> Iterator[PostgresCluster]:
    with postgres_cluster() as cluster:
        cluster.primary.sql(f"CREATE DATABASE {NAME}")
        asyncio.run(_migrate(cluster.url(NAME)))
        yield cluster


async def _migrate(url: str) -> None:
    async with SessionsDB(url, migrate=True):
        pass


@pytest.fixture
def cluster(servers: PostgresCluster) -> Iterator[PostgresCluster]:
    """A primary that waits for no standby, and a standby that replays, both without sessions."""
    if servers.primary.pid is None:
        servers.primary.start()
    if not (servers.standby.data / "standby.signal").exists():
        servers.rejoin()
    elif servers.standby.pid is None:
        servers.standby.start()
    servers.primary.configure("synchronous_standby_names", "")
    servers.primary.sql("TRUNCATE sessions CASCADE", NAME)
    yield servers
    servers.standby.thaw()
    if servers.standby.pid is not None and not servers.standby.is_primary():
        resume(servers)


@pytest.fixture
async def db(cluster: PostgresCluster) -> AsyncIterator[SessionsDB]:
    """A handle whose session ``chat`` has one message on both servers."""
    read_url = cluster.standby.url(NAME) + "&connect_timeout=1"
    async with SessionsDB(cluster.url(NAME), read_url=read_url) as db:
        version = await db.store.append("chat", [HELLO])
        await until(lambda: standby_has_version(cluster, version))
        yield db


def standby_has_version(cluster: PostgresCluster, version: int) -> bool:
    found = cluster.standby.sql("SELECT version FROM sessions WHERE id = 'chat'", NAME)
    return found == str(version)


async def pause(cluster: PostgresCluster) -> None:
    """Have the standby lag from now on."""
    cluster.standby.sql("SELECT pg_wal_replay_pause()")
    state = "SELECT pg_get_wal_replay_pause_state()"
    await until(lambda: cluster.standby.sql(state) == "paused")


def resume(cluster: PostgresCluster) -> None:
    cluster.standby.sql("SELECT pg_wal_replay_resume()")


def connections(cluster: PostgresCluster) -> int:
    """Return how many connections lead to the database on the standby."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'agents'"
    return int(cluster.standby.sql(asked))


def standby_of(db: SessionsDB) -> StandbyReads:
    standby = open_database_of(db).standby
    assert standby is not None
    return standby


async def texts(db: SessionsDB, id: str = "chat") -> list[str]:
    return [message.content for message in await db.broker.history(id)]


# ---- a standby that lags -------------------------------------------------------------------------


async def test_pages_and_lists_come_from_the_standby_where_the_caller_asks_for_them(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    await db.index_search()
    indexed = "SELECT count(*) FROM search_documents"
    await until(lambda: cluster.standby.sql(indexed, NAME) == "1")
    await pause(cluster)
    await db.store.append("chat", [NEWS])
    await db.broker.send("chat", "waits")
    await db.broker.register("other", channel="test", peer="p")
    await db.index_search()
    old = db.on_standby()
    assert await texts(old) == ["hello"]
    assert [entry.message for entry in await old.store.entries("chat")] == [HELLO]
    assert [session.id for session in await old.broker.list()] == ["chat"]
    assert [session.id for session in await old.store.list()] == ["chat"]
    assert await old.broker.inbox("chat") == []
    assert len(await old.broker.search("hello")) == 1
    assert await old.broker.search("news") == []
    assert len(await db.broker.search("news")) == 1
    assert len((await queries.read(old, "sessions")).rows) == 1
    assert await texts(db) == ["hello", "news"]
    assert len(await db.broker.list()) == 2
    assert len((await queries.read(db, "sessions")).rows) == 2


async def test_what_decides_is_read_from_the_primary(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    await pause(cluster)
    version = await db.store.append("chat", [NEWS], keys=["news"])
    receipt = await db.broker.send("chat", "waits")
    other = db.on_standby()
    assert await other.store.load("chat") == [HELLO, NEWS]
    assert await other.store.version("chat") == version
    assert await other.store.find("news") is not None
    assert (await other.broker.get("chat")).pending == 1
    assert (await other.broker.outcome(receipt)).status == "pending"
    assert await other.worker(echo).run_until_idle() == 1
    assert (await other.broker.wait(receipt)).reply is not None
    assert await other.store.append("chat", [NEWS], expected_version=version + 1) == version + 2


async def test_a_read_waits_for_the_write_that_it_must_see(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_reads, "LAG_SECONDS", 60.0)
    receipt = await db.broker.send("chat", "news")
    await pause(cluster)
    assert await db.worker(echo).run_until_idle() == 1
    outcome = await db.broker.wait(receipt)
    assert outcome.final
    version = await db.store.append("chat", [NEWS])
    reads = [
        asyncio.create_task(texts(db.on_standby(after=after)))
        for after in (outcome, {"chat": version})
    ]
    assert (await db.on_standby(after=receipt).broker.inbox("chat"))[0].status == "pending"
    assert await texts(db.on_standby()) == ["hello"]
    assert not any(read.done() for read in reads)
    resume(cluster)
    seen = await asyncio.wait_for(asyncio.gather(*reads), 30)
    assert [len(page) for page in seen] == [3, 4] or [len(page) for page in seen] == [4, 4]


async def test_a_read_of_a_write_that_does_not_come_goes_to_the_primary(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_reads, "LAG_SECONDS", 0.05)
    await pause(cluster)
    receipt = await db.broker.send("chat", "waits")
    version = await db.store.append("chat", [NEWS])
    for after in (receipt, {"chat": version}):
        assert await texts(db.on_standby(after=after)) == ["hello", "news"]
        assert len(await db.on_standby(after=after).broker.inbox("chat")) == 1
        assert len((await queries.read(db.on_standby(after=after), "inbox")).rows) == 1
    assert await texts(db.on_standby()) == ["hello"], "without a write it still reads the standby"
    assert not standby_of(db).is_gone


async def test_no_other_read_waits_after_one_has_waited_in_vain(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_reads, "LAG_SECONDS", 0.05)
    await pause(cluster)
    version = await db.store.append("chat", [NEWS])
    assert await texts(db.on_standby(after={"chat": version})) == ["hello", "news"]
    monkeypatch.setattr(standby_reads, "LAG_SECONDS", 600.0)
    read = texts(db.on_standby(after={"chat": version}))
    assert await asyncio.wait_for(read, 30) == ["hello", "news"]


async def test_a_session_that_the_standby_does_not_know_yet_is_found(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    await pause(cluster)
    await db.store.append("new", [NEWS])
    assert await texts(db.on_standby(), "new") == ["news"]
    with pytest.raises(UnknownSession):
        await texts(db.on_standby(), "nobody")


# ---- followers -----------------------------------------------------------------------------------


async def test_followers_of_the_standby_are_told_each_event_once_while_it_lags_and_is_gone(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_reads, "LAG_SECONDS", 0.05)
    monkeypatch.setattr(standby_reads, "LONGEST_CHECK_SECONDS", 0.1)
    seen: list[Any] = []

    async def follow() -> None:
        async for event in db.on_standby().broker.follow("chat", after="start"):
            seen.append(event)

    async def told(text: str) -> None:
        await db.store.append("chat", [{"role": "user", "content": text}])
        await until(lambda: seen and messages()[-1:] == [text])

    def messages() -> list[str]:
        return [event.message.content for event in seen if event.type == "message"]

    task = asyncio.create_task(follow())
    try:
        await told("streaming")
        await pause(cluster)
        await told("lagging")
        resume(cluster)
        await told("back")
        cluster.standby.stop()
        await told("gone")
        cluster.standby.start()
        await until(lambda: not standby_of(db).is_gone)
        await told("here again")
    finally:
        task.cancel()
        await asyncio.wait((task,))
    assert messages() == ["hello", "streaming", "lagging", "back", "gone", "here again"]
    assert {event.type for event in seen} == {"message", "idle"}


async def test_a_follower_of_the_standby_knows_a_session_and_a_cursor_of_the_primary(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_reads, "LAG_SECONDS", 0.05)
    await pause(cluster)
    await db.store.append("new", [NEWS])
    first = await anext(db.broker.follow("new", after="start"))
    await db.store.append("new", [HELLO])
    second = await anext(db.on_standby().broker.follow("new", after=first.cursor))
    assert second.type == "message"
    assert second.message.content == "hello"


async def test_a_follower_reads_the_standby(cluster: PostgresCluster, db: SessionsDB) -> None:
    assert connections(cluster) == 0
    first = await anext(db.on_standby().broker.follow("chat", after="start", subtree=True))
    assert first.type == "message"
    assert connections(cluster) > 0
    assert not standby_of(db).is_gone


async def test_a_standby_has_all_writes_of_a_primary_that_idles_in_a_new_log_file(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    """Backups and archive_timeout switch to a new file of the log."""
    offset = "SELECT file_offset FROM pg_walfile_name_offset(pg_current_wal_insert_lsn())"
    position, replayed, is_idle = 1, 0, False
    async with asyncio.timeout(20):
        while not is_idle or replayed < position:
            cluster.primary.sql("SELECT pg_switch_wal()")
            position = await open_database_of(db).read(log_position)
            replayed = int(cluster.standby.sql("SELECT pg_last_wal_replay_lsn() - '0/0'"))
            is_idle = cluster.primary.sql(offset) == "40"


# ---- a standby that is gone or hangs -------------------------------------------------------------


async def test_reads_go_to_the_primary_while_the_standby_is_gone(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_reads, "LONGEST_CHECK_SECONDS", 0.1)
    reader = db.on_standby()
    assert await texts(reader) == ["hello"]
    cluster.standby.stop("immediate")
    assert await texts(reader) == ["hello"]
    assert standby_of(db).is_gone
    version = await db.store.append("chat", [NEWS])
    assert await texts(db.on_standby(after={"chat": version})) == ["hello", "news"]
    assert len((await queries.read(reader, "sessions")).rows) == 1
    cluster.standby.start()
    await until(lambda: not standby_of(db).is_gone)
    await until(lambda: standby_has_version(cluster, version))
    await pause(cluster)
    await db.store.append("chat", [NEWS])
    assert await texts(reader) == ["hello", "news"], "the standby answers again"


async def test_a_damaged_row_of_the_standby_is_read_from_the_primary_and_no_other(
    cluster: PostgresCluster,
) -> None:
    """A policy that fails on a standby for one session stands for its damaged row."""
    cluster.primary.sql(
        """
        CREATE FUNCTION damaged(id text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            IF id = 'damaged' THEN RAISE EXCEPTION USING ERRCODE = 'XX001'; END IF; RETURN true;
        END $$;
        CREATE POLICY readable ON messages USING (damaged(session_id));
        ALTER TABLE messages ENABLE ROW LEVEL SECURITY;
        CREATE ROLE reads_by_policy LOGIN;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO reads_by_policy;
        """,
        NAME,
    )
    read_url = cluster.standby.url(NAME).replace("postgres@", "reads_by_policy@")
    try:
        async with SessionsDB(cluster.url(NAME), read_url=read_url) as db:
            await db.store.append("damaged", [HELLO])
            version = await db.store.append("chat", [HELLO])
            await until(lambda: standby_has_version(cluster, version))
            await pause(cluster)
            await db.store.append("chat", [NEWS])
            reader = db.on_standby()
            pages = await asyncio.gather(*(texts(reader, id) for id in ("damaged", "chat")))
            assert pages == [["hello"], ["hello"]]
            assert await texts(reader) == ["hello"], "the standby is still asked"
            assert not standby_of(db).is_gone
    finally:
        resume(cluster)
        cluster.primary.sql(
            "DROP POLICY readable ON messages; DROP FUNCTION damaged;"
            " ALTER TABLE messages DISABLE ROW LEVEL SECURITY;"
            " DROP OWNED BY reads_by_policy; DROP ROLE reads_by_policy",
            NAME,
        )


async def test_a_value_that_other_code_has_changed_does_not_end_the_reads_of_the_standby(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    await db.store.append("damaged", [HELLO])
    cluster.primary.sql("UPDATE sessions SET metadata = '{' WHERE id = 'damaged'", NAME)
    version = await db.store.append("chat", [HELLO])
    await until(lambda: standby_has_version(cluster, version))
    await pause(cluster)
    await db.store.append("chat", [NEWS])
    reader = db.on_standby()
    with pytest.raises(DamagedValue):
        await reader.broker.list(details=True)
    assert await texts(reader) == ["hello", "hello"], "the standby is still asked"


async def test_a_handle_opens_while_its_standby_is_gone(cluster: PostgresCluster) -> None:
    cluster.standby.stop("immediate")
    async with SessionsDB(cluster.url(NAME), read_url=cluster.standby.url(NAME)) as db:
        await db.store.append("chat", [HELLO])
        assert await texts(db.on_standby()) == ["hello"]


async def test_a_standby_that_hangs_holds_up_no_read(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primary_check, "STANDBY_CHECK_SECONDS", 0.1)
    reader = db.on_standby()
    assert await texts(reader) == ["hello"]
    cluster.standby.freeze()
    await db.store.append("chat", [NEWS])
    assert await asyncio.wait_for(texts(reader), 30) == ["hello", "news"]
    assert standby_of(db).is_gone


async def test_a_read_that_waits_for_the_standby_opens_nothing_once_the_handle_is_closed(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_reads, "LAG_SECONDS", 60.0)
    await pause(cluster)
    version = await db.store.append("chat", [NEWS])
    read = asyncio.create_task(texts(db.on_standby(after={"chat": version})))
    await until(lambda: connections(cluster) > 0)
    await db.close()
    # The primary may answer, or be closed already.
    await asyncio.wait_for(asyncio.gather(read, return_exceptions=True), 30)
    await until(lambda: connections(cluster) == 0)


# ---- handles -------------------------------------------------------------------------------------


async def test_several_hosts_prefer_a_standby(cluster: PostgresCluster, db: SessionsDB) -> None:
    await pause(cluster)
    await db.store.append("chat", [NEWS])
    both = cluster.url(NAME)
    async with SessionsDB(both, read_url=both) as other:
        assert await texts(other.on_standby()) == ["hello"]


def test_the_blocking_handle_reads_the_standby(cluster: PostgresCluster) -> None:
    with sync.SessionsDB(cluster.url(NAME), read_url=cluster.standby.url(NAME)) as db:
        version = db.store.append("chat", [HELLO])
        reader = db.on_standby(after={"chat": version})
        assert [message.content for message in reader.broker.history("chat")] == ["hello"]
        asyncio.run(pause(cluster))
        db.store.append("chat", [NEWS])
        assert [message.content for message in db.on_standby().broker.history("chat")] == ["hello"]
        acme = db.on_standby().in_namespace("acme")
        acme.store.append("chat", [NEWS])
        assert acme.broker.list() == []


async def test_commands_that_show_read_the_standby(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    await pause(cluster)
    await db.store.append("chat", [NEWS])
    await db.store.append("new", [HELLO])

    async def shown(*arguments: str, read: bool = True) -> str:
        standby = ("--read-url", cluster.standby.url(NAME)) if read else ()
        run = CommandLine(cluster.primary.url(NAME))
        return (await asyncio.to_thread(run, *standby, *arguments, "--json")).ok().stdout

    for command in (("history", "chat"), ("list",), ("dead-letters",)):
        assert "news" not in await shown(*command)
    assert "new" not in await shown("list")
    assert "news" in await shown("history", "chat", read=False)
    assert (await asyncio.to_thread(CommandLine("sqlite://"), "--read-url", "x", "list")).failed(
        "a SQLite file has no standby"
    )


async def test_without_a_standby_the_primary_gives_all_reads(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await db.store.append("chat", [HELLO])
        receipt = await db.broker.send("chat", "waits")
        reader = db.on_standby(after=receipt)
        assert await texts(reader) == ["hello"]
        assert len(await reader.broker.inbox("chat")) == 1
        assert len((await queries.read(reader, "sessions")).rows) == 1


@pytest.mark.parametrize("after", ["chat", 3, {"chat": -1}, {"chat": "3"}, {"": 3}, ["chat"]])
async def test_a_write_that_is_none_is_refused(after: Any) -> None:
    async with SessionsDB("sqlite://") as db:
        with pytest.raises((InvalidArgument, ValueError)):
            db.on_standby(after=after)


@pytest.mark.parametrize(
    ("url", "read_url", "reason"),
    [
        ("sqlite://", "postgresql://db/agents", "a SQLite file has no standby"),
        ("sqlite://", "sqlite://", "a SQLite file has no standby"),
        ("postgresql://db/agents", "sqlite://", "must name a standby"),
        ("postgresql://db/agents", "postgresql://db/agents?schema=x", "names the schema 'x'"),
        ("postgresql://db/a?schema=y", "postgresql://db/a?schema=x", "schema"),
        ("postgresql://db/agents", "nonsense", "not a database URL"),
        ("postgresql://db/agents", 3, "must be a URL"),
    ],
)
def test_a_standby_that_can_be_none_is_refused(url: str, read_url: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        SessionsDB(url, read_url=read_url)


# ---- last, since it changes the servers ----------------------------------------------------------


async def test_a_promoted_standby_gives_reads_and_takes_no_write_from_them(
    cluster: PostgresCluster,
) -> None:
    read_url = cluster.standby.url(NAME)
    async with SessionsDB(cluster.url(NAME), read_url=read_url) as db:
        version = await db.store.append("chat", [HELLO])
        await until(lambda: standby_has_version(cluster, version))
        reader = db.on_standby()
        assert await texts(reader) == ["hello"]
        cluster.primary.kill()
        cluster.promote_standby()
        version = await db.store.append("chat", [NEWS])
        assert await texts(db.on_standby(after={"chat": version})) == ["hello", "news"]
        assert await texts(reader) == ["hello", "news"]
        first = await anext(reader.broker.follow("chat", after="start"))
        assert first.type == "message"
        assert not standby_of(db).is_gone
        async with standby_of(db).engine.connect() as connection:
            with pytest.raises(DBAPIError, match="read-only transaction"):
                await connection.exec_driver_sql("DELETE FROM sessions")
