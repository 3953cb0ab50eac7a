"""A write is executed exactly once, at whatever moment its connection breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    SessionsDB,
    SpawnRequest,
    StorageError,
    UnknownSession,
)
from sessionsdb.engine.postgresql import recovery
from tests.support.proxy import Proxy, When, proxy_to
from tests.support.turns import waits_under_way
from tests.support.waiting import until

HELLO = {"role": "user", "content": "hello"}

pytestmark = pytest.mark.parametrize("kind", ["postgresql"])

CUTS: list[When] = ["before", "while", "after"]


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[Proxy]:
    async with proxy_to(database) as proxy:
        yield proxy


@pytest.fixture
async def db(proxy: Proxy) -> AsyncIterator[SessionsDB]:
    """A handle that connects through the proxy, with connections that have been used."""
    async with SessionsDB(proxy.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        await db.store.append("chat", [HELLO])
        await db.broker.send("chat", "hello")
        yield db


async def state(database: Database) -> tuple[Any, ...]:
    [row] = await database.query(
        "SELECT s.version, s.message_count, m.tail, m.pending,"
        " (SELECT count(*) FROM messages x WHERE x.session_id = 'chat'),"
        " (SELECT count(*) FROM inbox x WHERE x.session_id = 'chat')"
        " FROM sessions s JOIN mailboxes m ON m.session_id = s.id WHERE s.id = 'chat'"
    )
    return row


@pytest.mark.parametrize("when", CUTS)
@pytest.mark.parametrize("times", [1, 3])
async def test_an_append_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB, when: When, times: int
) -> None:
    proxy.cut("INSERT INTO messages", when, times=times)
    assert await db.store.append("chat", [HELLO] * 3) == 3
    assert proxy.cuts == (times if when == "before" else 1)
    assert await state(database) == (3, 4, 1, 1, 4, 1)


@pytest.mark.parametrize("when", CUTS)
@pytest.mark.parametrize("key", [None, "k"], ids=["without a key", "with a key"])
async def test_a_send_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB, when: When, key: str | None
) -> None:
    proxy.cut("INSERT INTO inbox", when)
    receipt = await db.broker.send("chat", "important", idempotency_key=key)
    assert (receipt.position, receipt.duplicate) == (2, False)
    assert proxy.cuts == 1
    assert await state(database) == (2, 1, 2, 2, 1, 2)


@pytest.mark.parametrize("when", CUTS)
async def test_a_send_is_not_taken_for_an_equal_one_with_another_key(
    database: Database, proxy: Proxy, db: SessionsDB, when: When
) -> None:
    first = await db.broker.send("chat", "yes", idempotency_key="first")
    proxy.cut("INSERT INTO inbox", when)
    second, third = await asyncio.gather(
        db.broker.send("chat", "yes", idempotency_key="second"),
        db.broker.send("chat", "yes", idempotency_key="third"),
    )
    assert proxy.cuts == 1
    assert [(one.position, one.duplicate) for one in (first, second, third)] == [
        (2, False), (3, False), (4, False)
    ]  # fmt: skip
    assert await state(database) == (2, 1, 4, 4, 1, 4)


@pytest.mark.parametrize("when", CUTS)
async def test_a_batch_is_executed_once_and_each_caller_gets_its_result(
    database: Database, proxy: Proxy, db: SessionsDB, when: When
) -> None:
    proxy.cut("INSERT INTO inbox", when)
    answers = await asyncio.gather(
        *(db.broker.send("chat", str(n)) for n in range(5)),
        db.broker.send("nobody", "hello"),
        return_exceptions=True,
    )
    assert [a.position for a in answers[:5]] == [2, 3, 4, 5, 6]
    assert isinstance(answers[5], UnknownSession)
    assert proxy.cuts == 1
    assert await state(database) == (2, 1, 6, 6, 1, 6)


async def test_a_batch_of_appends_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB
) -> None:
    proxy.cut("INSERT INTO messages", "after")
    versions = await asyncio.gather(
        *(db.store.append("chat", [HELLO]) for _ in range(4)), db.store.append("new", [HELLO])
    )
    # Appends that were merged into one all get its version.
    assert max(versions[:4]) == 6
    assert versions[4] == 1
    assert (await state(database))[:2] == (6, 5)
    assert await db.store.load("new") == [HELLO]


@pytest.mark.parametrize("when", CUTS)
@pytest.mark.parametrize("statement", ["INSERT INTO messages", "UPDATE sessions", "COMMIT"])
async def test_a_save_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB, when: When, statement: str
) -> None:
    proxy.cut(statement, when)
    assert await db.store.save("chat", [HELLO] * 3) == 3
    assert proxy.cuts == 1
    assert await state(database) == (3, 3, 1, 1, 3, 1)


@pytest.mark.parametrize("when", CUTS)
@pytest.mark.parametrize("statement", ["INSERT INTO sessions", "INSERT INTO inbox", "COMMIT"])
async def test_a_spawn_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB, when: When, statement: str
) -> None:
    proxy.cut(statement, when)
    child = await db.broker.spawn("chat", SpawnRequest(prompt="go"))
    assert proxy.cuts == 1
    assert await database.query("SELECT id FROM sessions WHERE parent_id = 'chat'") == [(child.id,)]
    assert await database.query("SELECT count(*) FROM inbox WHERE session_id <> 'chat'") == [(1,)]


@pytest.mark.parametrize("when", CUTS)
async def test_other_writes_are_executed_once_and_return_their_result(
    database: Database, proxy: Proxy, db: SessionsDB, when: When
) -> None:
    proxy.cut("COMMIT", when)
    made = await db.broker.register("new", channel="cli", peer="ada")
    assert (made.id, proxy.cuts) == ("new", 1)
    proxy.cut("COMMIT", when)
    assert (await db.broker.update("new", model="m")).model == "m"
    proxy.cut("COMMIT", when)
    assert await db.broker.end("new") == 1
    proxy.cut("COMMIT", when)
    await db.store.delete("new")
    assert await db.store.load("new") is None


@pytest.mark.parametrize("when", CUTS)
async def test_reads_are_repeated(proxy: Proxy, db: SessionsDB, when: When) -> None:
    for statement, read in READS.items():
        proxy.cut(statement, when)
        await read(db)
        assert proxy.cuts == 1


READS: dict[str, Callable[[SessionsDB], Awaitable[object]]] = {
    "FROM messages": lambda db: db.store.load("chat"),
    "m.seq": lambda db: db.broker.history("chat"),
    "last_active": lambda db: db.broker.list(),
    "s.end_reason": lambda db: db.broker.get("chat"),
}


# ---- a statement that goes on after its connection broke -----------------------------------------


async def lock(database: Database, table: str) -> Any:
    """Lock the session's row in a transaction of another connection."""
    connection = await database.connect_to_postgres()
    transaction = connection.transaction()
    await transaction.start()
    column = "session_id" if table == "mailboxes" else "id"
    await connection.execute(f"SELECT 1 FROM {table} WHERE {column} = 'chat' FOR UPDATE")

    async def unlock() -> None:
        await transaction.commit()
        await connection.close()

    return unlock


async def waiting_for_locks(database: Database) -> int:
    return int(
        await database.value(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    )


@pytest.mark.parametrize("table", ["sessions", "mailboxes"])
async def test_a_write_that_waits_for_a_lock_when_its_connection_breaks_is_executed_once(
    database: Database, proxy: Proxy, db: SessionsDB, table: str
) -> None:
    """A server that waits for a lock does not notice that its client is gone.

    Its statement would commit after the client looked it up, found nothing, and executed it again.
    """
    unlock = await lock(database, table)
    before = sends(proxy)
    proxy.cut("INSERT INTO inbox", "while")
    send = asyncio.create_task(db.broker.send("chat", "important"))
    await until(lambda: proxy.cuts == 1)

    async def again() -> bool:
        # Other statements, a NOTIFY for example, may be executed after the second one.
        return sends(proxy) == before + 2 and await waiting_for_locks(database) > 0

    await until(again)
    await unlock()
    assert (await asyncio.wait_for(send, 30)).position == 2
    await until(lambda: no_statement_runs(database))
    assert await state(database) == (2, 1, 2, 2, 1, 2)


def sends(proxy: Proxy) -> int:
    """How often the statement of a send was executed."""
    return sum(statement.startswith(SEND) for statement in proxy.executed)


SEND = "\nWITH mailbox AS MATERIALIZED"


async def no_statement_runs(database: Database) -> bool:
    return (
        await database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle'"
            " AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        == 0
    )


# ---- a database that goes away -------------------------------------------------------------------


async def test_a_database_that_is_down_is_a_storage_error_with_the_drivers_error_as_its_cause(
    database: Database, proxy: Proxy
) -> None:
    await proxy.down()
    with pytest.raises(StorageError) as refused:
        async with SessionsDB(proxy.url):
            pass
    assert isinstance(refused.value.__cause__, OSError)
    await proxy.up()
    async with SessionsDB(proxy.url) as db:
        assert await db.broker.list() == []


async def test_a_database_that_comes_back_is_used_again(
    database: Database, proxy: Proxy, db: SessionsDB
) -> None:
    await asyncio.gather(*(db.broker.get("chat") for _ in range(10)))  # fill the pool
    await proxy.down()
    for call in (
        lambda: db.broker.get("chat"),
        lambda: db.store.save("chat", []),
        lambda: db.broker.history("chat"),
    ):
        with pytest.raises(StorageError) as refused:
            await call()
        assert isinstance(refused.value.__cause__, OSError)
    await proxy.up()
    assert (await db.broker.send("chat", "again")).position == 2
    assert await db.store.append("chat", [HELLO]) == 3
    assert await db.store.save("chat", [HELLO]) == 4
    assert len(await asyncio.gather(*(db.broker.get("chat") for _ in range(20)))) == 20


async def test_a_send_waits_for_a_database_that_went_down_before_it_answered(
    database: Database, proxy: Proxy, db: SessionsDB
) -> None:
    """The send is looked up when the database is back."""
    proxy.cut("INSERT INTO inbox", "after", for_good=True)
    send = asyncio.create_task(db.broker.send("chat", "important"))
    await until(lambda: proxy.cuts == 1)
    await proxy.down()
    assert not send.done()
    await proxy.up()
    assert (await asyncio.wait_for(send, 20)).position == 2
    assert await state(database) == (2, 1, 2, 2, 1, 2)


async def test_an_answer_that_is_lost_for_good_is_an_unknown_result(
    database: Database, proxy: Proxy, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RECOVERY_SECONDS", 0.2)
    proxy.cut("INSERT INTO inbox", "after", for_good=True)
    send = asyncio.create_task(db.broker.send("chat", "important"))
    await until(lambda: proxy.cuts == 1)
    await proxy.down()
    with pytest.raises(StorageError, match="unknown; read before you repeat it") as lost:
        await asyncio.wait_for(send, 20)
    assert isinstance(lost.value.__cause__, OSError)
    await proxy.up()
    assert (await state(database))[2] in (1, 2)


async def test_waiters_survive_an_outage(
    database: Database, proxy: Proxy, db: SessionsDB, caplog: pytest.LogCaptureFixture
) -> None:
    receipt = await db.broker.send("chat", "hello")
    wait = asyncio.create_task(db.broker.wait(receipt, timeout=60))
    await until(lambda: waits_under_way(db))
    await proxy.down()
    await database.query("UPDATE inbox SET status = 'done', finished_at = now()")
    await until(lambda: "trying again" in caplog.text)
    assert not wait.done()
    await proxy.up()
    assert (await asyncio.wait_for(wait, 20)).status == "done"
