"""Failover: lost answers, the choice of a host, and process ids that were given again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from devtools.databases import Database
from devtools.postgres_cluster import (
    SETTINGS,
    PostgresCluster,
    PostgresNode,
    postgres_cluster,
    postgres_node,
)
from sessionsdb import (
    InvalidArgument,
    Receipt,
    SessionsDB,
    SpawnRequest,
    StorageError,
    Turn,
    UnknownSession,
)
from sessionsdb.database import open_database_of
from sessionsdb.engine import urls
from sessionsdb.engine.postgresql import failover, primary_check, server_process, tcp_keepalive
from tests.support.forwarder import Forwarder
from tests.support.proxy import proxy_to
from tests.support.waiting import until

NAME = "agents"
HELLO = {"role": "user", "content": "hello"}
NEW = "SELECT count(*) FROM sessions WHERE id = 'new'"


@pytest.fixture(scope="module")
def servers() -> Iterator[PostgresCluster]:
    # What is not committed stays off the disk and off the standby for as long as can be said.
    with postgres_cluster(settings=SETTINGS | {"wal_writer_delay": "10s"}) as cluster:
        cluster.primary.sql(f"CREATE DATABASE {NAME}")
        asyncio.run(_migrate(cluster.url(NAME)))
        yield cluster


async def _migrate(url: str) -> None:
    async with SessionsDB(url, migrate=True):
        pass


@pytest.fixture
def cluster(servers: PostgresCluster) -> PostgresCluster:
    """A primary and its standby, in sync, with one session in the database."""
    for node in servers.nodes:
        node.thaw()
    if servers.primary.pid is None:
        servers.primary.start()
    if servers.standby.pid is None or servers.standby.is_primary():
        servers.rejoin()
    servers.make_synchronous()
    servers.primary.sql("TRUNCATE sessions CASCADE", NAME)
    return servers


@pytest.fixture
async def db(cluster: PostgresCluster) -> AsyncIterator[SessionsDB]:
    async with SessionsDB(cluster.url(NAME)) as db:
        await db.broker.register("chat", channel="test", peer="p")
        yield db


def fail_over(cluster: PostgresCluster) -> None:
    cluster.primary.kill()
    cluster.promote_standby()


async def waiting_for_the_standby(node: PostgresNode) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    return await asyncio.to_thread(node.sql, waiting) != "0"


# ---- what is acknowledged ------------------------------------------------------------------------


async def test_a_send_returns_when_the_standby_has_it(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    cluster.standby.stop("immediate")
    send = asyncio.create_task(db.broker.send("chat", "hello"))
    await until(partial(waiting_for_the_standby, cluster.primary))
    assert not send.done()
    cluster.standby.start()
    assert (await asyncio.wait_for(send, 30)).position == 1


@pytest.mark.parametrize("verb", ["send", "append", "register"])
async def test_a_write_that_only_the_primary_has_is_not_acknowledged_after_a_lost_answer(
    cluster: PostgresCluster, db: SessionsDB, verb: str
) -> None:
    """A process that is ended while it waits for the standby has committed on the primary.

    A lookup finds the row, and a failover loses it.
    """
    calls = {
        "send": lambda: db.broker.send("chat", "important"),
        "append": lambda: db.store.append("chat", [{"role": "user", "content": "important"}]),
        "register": lambda: db.broker.register("new", channel="test", peer="p"),
    }
    cluster.standby.stop("immediate")
    call = asyncio.create_task(calls[verb]())
    await until(partial(waiting_for_the_standby, cluster.primary))
    first = cluster.primary.sql("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    cluster.primary.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    )
    # The lookup writes a stamp of its own, whose commit waits for the standby again.
    asked = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await until(lambda: cluster.primary.sql(asked) not in ("", first))
    seen = "SELECT (SELECT count(*) FROM inbox), (SELECT count(*) FROM messages),"
    seen += " (SELECT count(*) FROM sessions)"
    alone = cluster.primary.sql(seen, NAME)
    assert alone in ("1|0|1", "0|1|1", "0|0|2"), "the primary has the row"
    assert not call.done()
    cluster.primary.kill()
    cluster.standby.start()
    cluster.promote_standby()
    await asyncio.wait_for(call, 30)
    assert cluster.primary.sql(seen, NAME) == alone, "the new primary has the row once"


@pytest.mark.parametrize("what", ["restart", "recovery", "failover"])
async def test_a_transaction_that_was_lost_with_its_server_is_made_again(
    cluster: PostgresCluster, db: SessionsDB, what: Literal["restart", "recovery", "failover"]
) -> None:
    """Its transaction id is given to another transaction, whose commit must prove nothing."""
    given: list[int] = []
    if what == "failover":
        cluster.standby.stop("immediate")

    @event.listens_for(db.engine.sync_engine, "commit", once=True)
    def die(connection: Connection) -> None:
        number = connection.exec_driver_sql("SELECT pg_current_xact_id()::text").scalar()
        assert number is not None
        if what == "recovery":  # of a server whose postmaster survives
            cluster.primary.crash()
        else:
            cluster.primary.kill()
        if what == "restart":
            cluster.primary.start()
        if what == "failover":
            cluster.standby.start()
            cluster.promote_standby()
        while not given or given[-1] <= int(number):
            given.append(int(cluster.primary.sql("SELECT pg_current_xact_id()", NAME)))
        assert int(number) in given, "the id was given again"

    assert (await db.broker.register("new", channel="test", peer="p")).id == "new"
    assert given
    assert cluster.primary.sql(NEW, NAME) == "1"


async def test_a_transaction_whose_id_the_new_primary_has_not_reached_is_made_again(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    cluster.standby.stop("immediate")
    for _ in range(100):  # ids that the standby never receives
        cluster.primary.sql("BEGIN; SELECT pg_current_xact_id(); ROLLBACK", NAME)

    @event.listens_for(db.engine.sync_engine, "commit", once=True)
    def die(_connection: Connection) -> None:
        cluster.primary.kill()
        cluster.standby.start()
        cluster.promote_standby()

    assert (await db.broker.register("new", channel="test", peer="p")).id == "new"
    assert cluster.primary.sql(NEW, NAME) == "1"


async def run_a_turn(db: SessionsDB) -> None:
    async def handle(turn: Turn) -> str:
        turn.spawn(SpawnRequest(prompt="go"))
        return "answer"

    await db.broker.send("chat", "hello")
    worker = db.worker(handle, concurrency=1)
    work = asyncio.create_task(worker.run())
    await db.broker.wait(Receipt(session_id="chat", position=1), timeout=60)
    await worker.stop(grace=0)
    await work


LOST: dict[str, tuple[str, Callable[[SessionsDB], Awaitable[object]], str]] = {
    "register": (
        "COMMIT",
        lambda db: db.broker.register("new", channel="test", peer="p"),
        NEW,
    ),
    "save": (
        "COMMIT",
        lambda db: db.store.save("chat", [HELLO]),
        "SELECT version - 1 FROM sessions WHERE id = 'chat'",
    ),
    "append": (
        "INSERT INTO messages",
        lambda db: db.store.append("chat", [HELLO]),
        "SELECT count(*) FROM messages",
    ),
    "send": (
        "INSERT INTO inbox",
        lambda db: db.broker.send("chat", "hello"),
        "SELECT count(*) FROM inbox",
    ),
    "turn": (
        "COMMIT",
        run_a_turn,
        "SELECT count(*) FROM sessions WHERE parent_id = 'chat'",
    ),
}


@pytest.mark.parametrize("verb", list(LOST))
@pytest.mark.parametrize("what", ["restart", "failover"])
async def test_a_commit_that_outlives_its_server_is_found_and_not_repeated(
    cluster: PostgresCluster, what: Literal["restart", "failover"], verb: str
) -> None:
    """The answer is lost together with the server. The disk and the standby have the commit."""
    statement, call, look = LOST[verb]
    async with proxy_to(Database("postgresql", cluster.primary.socket_url(NAME))) as proxy:
        hosts = f"127.0.0.1:{proxy.port},127.0.0.1:{cluster.standby.port}"
        async with SessionsDB(f"postgresql://postgres@{hosts}/{NAME}?sslmode=disable") as db:
            await db.broker.register("chat", channel="test", peer="p")
            proxy.cut(statement, "after", for_good=True)
            write = asyncio.create_task(call(db))
            await until(lambda: proxy.cuts == 1)
            await until(lambda: cluster.primary.sql(look, NAME) == "1")
            await proxy.down()
            if what == "failover":
                await asyncio.to_thread(fail_over, cluster)
            else:
                await asyncio.to_thread(cluster.primary.restart, "immediate")
                await proxy.up()
            await asyncio.wait_for(write, 60)
    assert cluster.primary.sql(look, NAME) == "1"


async def test_a_repeated_key_is_answered_when_the_standby_has_the_first_send(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    """The process of the first send was ended. Its receipt must not return before it is durable."""
    cluster.standby.stop("immediate")
    async with SessionsDB(cluster.url(NAME)) as first:
        broken = asyncio.create_task(first.broker.send("chat", "hello", idempotency_key="k"))
        await until(partial(waiting_for_the_standby, cluster.primary))
        cluster.primary.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        await until(lambda: cluster.primary.sql("SELECT count(*) FROM inbox", NAME) == "1")
        repeated = asyncio.create_task(db.broker.send("chat", "hello", idempotency_key="k"))
        asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        await until(lambda: cluster.primary.sql(asked) == "2")
        assert not repeated.done()
        cluster.standby.start()
        assert (await asyncio.wait_for(repeated, 30)).duplicate
        assert (await asyncio.wait_for(broken, 30)).position == 1


# ---- standbys and server processes ---------------------------------------------------------------


async def test_a_lookup_waits_for_a_primary_and_does_not_trust_a_standby(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    invalidated: list[Any] = []
    async with SessionsDB(cluster.standby.url(NAME)) as reader:
        event.listen(reader.engine.sync_engine, "invalidate", lambda *a: invalidated.append(a))
        lookup = asyncio.create_task(
            open_database_of(reader).runner.read_durable(
                lambda c: c.execute(text("SELECT 'found'")).scalar()
            )
        )
        await until(lambda: len(invalidated) >= 2)
        assert not lookup.done()
        await asyncio.to_thread(fail_over, cluster)
        assert await asyncio.wait_for(lookup, 30) == "found"


async def test_a_process_with_the_id_of_a_lost_process_is_not_terminated(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    """A process id means nothing on another server or after a restart."""
    async with db.engine.connect() as innocent:
        [process] = (await innocent.execute(server_process._IDENTIFY)).all()
        other = {"pid": process.pid, "started": process.started - timedelta(seconds=1)}
        async with db.engine.connect() as connection:
            assert (await connection.execute(server_process._TERMINATE, other)).all() == []
            assert (await innocent.execute(text("SELECT 1"))).scalar() == 1
            same = {"pid": process.pid, "started": process.started}
            assert (await connection.execute(server_process._TERMINATE, same)).scalar() is True
        await innocent.invalidate()


# ---- which host ----------------------------------------------------------------------------------


async def test_the_host_that_takes_writes_is_used(
    cluster: PostgresCluster,
) -> None:
    async with SessionsDB(cluster.url(NAME)) as db:
        await db.broker.register("first", channel="test", peer="p")
        await asyncio.to_thread(fail_over, cluster)
        await asyncio.to_thread(cluster.rejoin)
    async with SessionsDB(cluster.url(NAME)) as db:  # the same URL, and the primary is the other
        await db.broker.register("second", channel="test", peer="p")
        assert len(await db.broker.list()) == 2


async def is_replicated(standby: SessionsDB) -> bool:
    try:
        return (await standby.broker.get("chat")).id == "chat"
    except UnknownSession:
        return False


async def test_connections_follow_a_name_that_moves_to_another_server(
    cluster: PostgresCluster, db: SessionsDB
) -> None:
    """The URL has one host, and another server takes its address or its DNS entry."""
    async with (
        Forwarder.to(cluster.standby.port) as name,
        SessionsDB(f"postgresql://postgres@127.0.0.1:{name.port}/{NAME}?sslmode=disable") as moved,
    ):
        await until(lambda: is_replicated(moved))
        await asyncio.gather(*(moved.broker.get("chat") for _ in range(10)))  # a pool full of them
        for write in (
            lambda: moved.broker.send("chat", "hello"),
            lambda: moved.broker.register("new", channel="test", peer="p"),
        ):
            with pytest.raises(StorageError, match="read-only"):
                await write()
        name.target = cluster.primary.port
        receipts = await asyncio.gather(*(moved.broker.send("chat", "hello") for _ in range(10)))
        assert [r.position for r in receipts] == list(range(1, 11))
        assert (await moved.broker.register("new", channel="test", peer="p")).id == "new"


async def test_a_first_host_that_does_not_answer_does_not_block_the_second(
    cluster: PostgresCluster,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, answers none
        first = silent.getsockname()[1]
        async with SessionsDB(
            f"postgresql://postgres@127.0.0.1:{first},127.0.0.1:{cluster.primary.port}/{NAME}"
            "?sslmode=disable&connect_timeout=1"
        ) as db:
            await db.broker.register("chat", channel="test", peer="p")
            # From now on it is asked last.
            async with asyncio.timeout(0.9):
                await asyncio.gather(*(db.broker.get("chat") for _ in range(10)))
        url = f"postgresql://postgres@127.0.0.1:{first}/{NAME}?connect_timeout=1"
        with pytest.raises(StorageError, match="no answer within 1 s"):
            async with SessionsDB(url):
                pass


async def test_calls_leave_a_hanging_server_after_a_failover(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host acknowledges packets, so no connection breaks by itself."""
    monkeypatch.setattr(primary_check, "PRIMARY_CHECK_SECONDS", 0.3)
    async with SessionsDB(cluster.url(NAME, connect_timeout="1")) as db:
        await db.broker.register("chat", channel="test", peer="p")
        await asyncio.gather(*(db.broker.get("chat") for _ in range(5)))
        frozen = cluster.primary
        frozen.freeze()
        calls = [
            asyncio.create_task(db.broker.send("chat", "hello")),
            asyncio.create_task(db.broker.send("chat", "again")),
            asyncio.create_task(db.broker.register("new", channel="test", peer="p")),
            asyncio.create_task(db.store.load("chat")),
        ]
        await asyncio.to_thread(cluster.promote_standby)
        await asyncio.wait_for(asyncio.gather(*calls), 20)
        assert (await db.broker.get("chat")).pending == 2
        frozen.kill()


async def test_a_statement_on_the_primary_may_take_any_time(
    cluster: PostgresCluster, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primary_check, "PRIMARY_CHECK_SECONDS", 0.1)
    checks: list[Any] = []
    check_primary = failover.HostList.check_primary

    async def counted(self: failover.HostList) -> None:
        await check_primary(self)
        checks.append(self)

    monkeypatch.setattr(failover.HostList, "check_primary", counted)
    async with db.engine.begin() as mine:
        await mine.execute(text("SELECT 1 FROM mailboxes FOR UPDATE"))
        send = asyncio.create_task(db.broker.send("chat", "hello"))
        await until(lambda: len(checks) >= 3)
        assert not send.done()
    assert (await asyncio.wait_for(send, 20)).position == 1
    assert (await db.broker.get("chat")).pending == 1


async def test_the_error_names_every_host_with_its_reason(
    cluster: PostgresCluster,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        unused_port = free.getsockname()[1]
    standby = cluster.standby.port
    url = (
        f"postgresql://postgres@127.0.0.1:{unused_port},127.0.0.1:{standby}/{NAME}?sslmode=disable"
    )
    with pytest.raises(StorageError) as refused:
        async with SessionsDB(url):
            pass
    assert f"127.0.0.1:{unused_port}: " in str(refused.value)
    assert f"127.0.0.1:{standby}: not the kind of server that is asked for" in str(refused.value)


async def test_a_url_may_ask_for_a_standby(cluster: PostgresCluster, db: SessionsDB) -> None:
    async with SessionsDB(cluster.url(NAME, target_session_attrs="standby")) as reader:
        assert reader.engine.url.query["target_session_attrs"] == "standby"
        await until(lambda: _sees(reader, "chat"))
        with pytest.raises(StorageError, match="read-only"):
            await reader.broker.send("chat", "hello")
    async with SessionsDB(cluster.url(NAME, target_session_attrs="prefer-standby")) as reader:
        assert (await reader.broker.get("chat")).id == "chat"
        async with reader.engine.connect() as connection:
            assert (await connection.execute(text("SELECT pg_is_in_recovery()"))).scalar()


async def _sees(reader: SessionsDB, id: str) -> bool:
    return [one.id for one in await reader.broker.list()] == [id]


async def test_connections_have_keepalive_options(cluster: PostgresCluster, db: SessionsDB) -> None:
    async with SessionsDB(cluster.url(NAME, tcp_user_timeout="7000")) as other:
        for handle, silence in ((db, tcp_keepalive.UNANSWERED_MILLISECONDS), (other, 7_000)):
            async with handle.engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                line = driver._transport.get_extra_info("socket")
                assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == silence
                assert (
                    line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                    == tcp_keepalive.KEEPALIVE_SECONDS
                )


async def test_a_callers_engine_fails_over_too(cluster: PostgresCluster) -> None:
    hosts_and_ports = "&".join(f"host=127.0.0.1:{node.port}" for node in cluster.nodes)
    engine = create_async_engine(
        f"postgresql+asyncpg://postgres@/{NAME}?{hosts_and_ports}",
        pool_size=2,
        connect_args={"timeout": 5, "ssl": False},
    )
    async with SessionsDB(engine) as db:
        await db.broker.register("chat", channel="test", peer="p")
        await asyncio.to_thread(fail_over, cluster)
        await asyncio.to_thread(cluster.rejoin)
        assert (await db.broker.send("chat", "hello")).position == 1
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            line = driver._transport.get_extra_info("socket")
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    await engine.dispose()


# ---- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "listed"),
    [
        ("postgresql://u@h1:5433,h2:5434/n", ("h1,h2", "5433,5434")),
        ("postgres://u:p%40w@h1,h2:5434/n?sslmode=require", ("h1,h2", "5432,5434")),
        ("postgresql://u@[::1]:5433,[fe80::2]/n", ("::1,fe80::2", "5433,5432")),
        ("postgresql://u@/n?host=h1:5433&host=h2:5434", ("h1,h2", "5433,5434")),
        ("postgresql://u@/n?host=h1,h2&port=5433,5434", ("h1,h2", "5433,5434")),
        ("postgresql://u@/n?host=h1,h2&port=5433", ("h1,h2", "5433,5433")),
        ("postgresql://u@/n?host=/tmp/a,/tmp/b", ("/tmp/a,/tmp/b", "5432,5432")),
    ],
)
def test_several_hosts_are_accepted_in_every_usual_form(url: str, listed: tuple[str, str]) -> None:
    parsed = urls.parse(url)
    assert (parsed.query["host"], parsed.query["port"]) == listed
    assert (parsed.username, parsed.database) == ("u", "n")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@h1,,h2/n",
        "postgresql://u@h1,h2/n?port=1,2,3",
        "postgresql://u@h1:x,h2/n",
        "postgresql://u@h0/n?host=h1,h2",
    ],
)
def test_ambiguous_hosts_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="HOST:PORT,HOST:PORT"):
        SessionsDB(url)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("postgresql://u:pa,ss@h1/n", "h1"),
        ("postgresql://u:pa,ss@h1:5433/n?sslmode=require", "h1"),
        ("postgresql://u:pa,ss@h1:5433,h2:5434/n", "h1,h2"),
    ],
)
def test_a_comma_in_a_password_makes_no_hosts(url: str, host: str) -> None:
    parsed = urls.parse(url)
    assert (parsed.username, parsed.password, parsed.database) == ("u", "pa,ss", "n")
    assert host in (parsed.host, parsed.query.get("host"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:sec,ret/x@h1/n",
        "postgresql://u:sec,ret?x@h1/n",
        "postgresql://u:1,ret/x@h1/n?port=1,2,3",
        "postgresql://u:sec,ret@h1:port/n",
        "postgresql://u:sec,ret@h1@h2/n",
    ],
)
def test_a_password_with_a_comma_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        SessionsDB(url)
    assert "sec" not in str(refused.value)
    assert "ret" not in str(refused.value)


@pytest.mark.parametrize("parameter", ["connect_timeout", "tcp_user_timeout"])
def test_a_timeout_must_be_a_number(parameter: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{parameter} .* whole number"):
        SessionsDB(f"postgresql://u@h1/n?{parameter}=soon")


# ---- restarts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fast", "immediate", "crash"])
async def test_a_restart_replaces_every_connection_of_the_pool(how: str) -> None:
    with postgres_node() as node:
        node.sql(f"CREATE DATABASE {NAME}")
        async with SessionsDB(node.url(NAME), migrate=True) as db:
            await db.broker.register("chat", channel="test", peer="p")
            await asyncio.gather(*(db.broker.get("chat") for _ in range(20)))
            if how == "crash":
                node.crash()
            else:
                node.restart("fast" if how == "fast" else "immediate")
            # Not one of them is told of the old connections.
            await asyncio.gather(
                *(db.broker.get("chat") for _ in range(20)),
                *(db.broker.send("chat", "hello") for _ in range(20)),
                *(db.broker.register(f"s{n}", channel="test", peer="p") for n in range(20)),
            )
            assert (await db.broker.get("chat")).pending == 20
