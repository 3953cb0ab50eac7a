"""connection=: messages that commit or roll back with the caller's own rows."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from devtools.databases import Database
from sessionsdb import (
    IdempotencyConflict,
    InboxFull,
    InvalidArgument,
    Limits,
    SessionsDB,
    SpawnDenied,
    SpawnRequest,
    StorageError,
    UnknownReceipt,
    UnknownSession,
)
from sessionsdb.database import open_database_of
from sessionsdb.engine import urls
from sessionsdb.runtime.locked_sessions import LockedSessions
from tests.support.cancellation import cancel_everywhere
from tests.support.refusal import forbid
from tests.support.waiting import until


@pytest.fixture(autouse=True)
async def _chat(database: Database, db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await database.query("CREATE TABLE orders (id INTEGER PRIMARY KEY)")


@pytest.fixture
async def own_engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """An engine that the caller made without sessionsdb."""
    engine = create_async_engine(urls.parse(database.url))
    yield engine
    await engine.dispose()


@pytest.fixture(params=["our engine", "own engine"])
def engine(request: pytest.FixtureRequest, db: SessionsDB, own_engine: AsyncEngine) -> AsyncEngine:
    return db.engine if request.param == "our engine" else own_engine


async def orders(database: Database) -> int:
    return int(await database.value("SELECT count(*) FROM orders"))


async def inbox(database: Database) -> int:
    return int(await database.value("SELECT count(*) FROM inbox"))


async def order(connection: AsyncConnection, id: int = 1) -> None:
    await connection.execute(text("INSERT INTO orders VALUES (:id)"), {"id": id})


async def test_a_message_commits_with_the_callers_rows(
    database: Database, db: SessionsDB, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        await order(connection)
        receipt = await db.broker.send("chat", "order 1", connection=connection)
        child = await db.broker.spawn("chat", SpawnRequest(prompt="go"), connection=connection)
        assert (await orders(database), await inbox(database)) == (0, 0)
        await connection.commit()
    assert (await orders(database), await inbox(database)) == (1, 2)
    assert (await db.broker.outcome(receipt)).status == "pending"
    assert (await db.broker.get(child.id)).pending == 1


@pytest.mark.parametrize("send_first", [True, False])
async def test_a_message_rolls_back_with_the_callers_rows(
    database: Database, db: SessionsDB, engine: AsyncEngine, send_first: bool
) -> None:
    before = await db.broker.get("chat")
    async with engine.connect() as connection:
        if send_first:
            receipt = await db.broker.send("chat", "order 1", connection=connection)
            await order(connection)
        else:
            await order(connection)
            receipt = await db.broker.send("chat", "order 1", connection=connection)
        await db.broker.spawn("chat", SpawnRequest(prompt="go"), connection=connection)
        await connection.rollback()
    assert (await orders(database), await inbox(database)) == (0, 0)
    assert await db.broker.get("chat") == before
    assert await db.broker.list(parent="chat") == []
    with pytest.raises(UnknownReceipt):
        await db.broker.outcome(receipt)
    assert (await db.broker.send("chat", "next")).position == receipt.position


async def test_a_block_that_begins_and_raises_takes_the_message_with_it(
    database: Database, db: SessionsDB, engine: AsyncEngine
) -> None:
    async def change_my_mind() -> None:
        async with engine.begin() as connection:
            await db.broker.send("chat", "order 1", connection=connection)
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        await change_my_mind()
    assert await inbox(database) == 0
    async with engine.begin() as connection:
        await db.broker.send("chat", "order 1", connection=connection)
    assert await inbox(database) == 1


async def test_a_refused_send_leaves_the_transaction_usable(
    database: Database, own_engine: AsyncEngine
) -> None:
    async with (
        SessionsDB(database.url, limits=Limits(pending=1, children=0)) as db,
        own_engine.begin() as connection,
    ):
        await order(connection, 1)
        with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
            await db.broker.send("nobody", "hello", connection=connection)
        await db.broker.send("chat", "one", idempotency_key="k", connection=connection)
        with pytest.raises(InboxFull):
            await db.broker.send("chat", "two", connection=connection)
        with pytest.raises(IdempotencyConflict):
            await db.broker.send("chat", "x", idempotency_key="k", connection=connection)
        with pytest.raises(SpawnDenied):
            await db.broker.spawn("chat", SpawnRequest(prompt="go"), connection=connection)
        again = await db.broker.send("chat", "one", idempotency_key="k", connection=connection)
        assert again.duplicate
        await order(connection, 2)
    assert (await orders(database), await inbox(database)) == (2, 1)


async def test_a_refusal_of_the_database_leaves_the_transaction_usable(
    database: Database, db: SessionsDB, own_engine: AsyncEngine
) -> None:
    await forbid(database, "forbidden")
    async with own_engine.begin() as connection:
        await order(connection)
        with pytest.raises(StorageError, match="refused"):
            await db.broker.send("chat", "forbidden", connection=connection)
        await db.broker.send("chat", "allowed", connection=connection)
    assert (await orders(database), await inbox(database)) == (1, 1)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_key_in_an_open_transaction_is_waited_for_by_a_lone_send(
    database: Database, db: SessionsDB, own_engine: AsyncEngine
) -> None:
    """The second send sees the row of the first only at its second look: its snapshot is older."""
    async with own_engine.connect() as first:
        one = await db.broker.send("chat", "hello", idempotency_key="k", connection=first)
        sending = asyncio.create_task(db.broker.send("chat", "hello", idempotency_key="k"))
        await until(lambda: blocked(database))
        await first.commit()
        two = await asyncio.wait_for(sending, 10)
    assert (one.position, two.position, two.duplicate) == (1, 1, True)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_one_key_sent_in_two_open_transactions_queues_one(
    database: Database, db: SessionsDB, own_engine: AsyncEngine
) -> None:
    async with own_engine.connect() as first, own_engine.connect() as second:
        one = await db.broker.send("chat", "hello", idempotency_key="k", connection=first)
        sending = asyncio.create_task(
            db.broker.send("chat", "hello", idempotency_key="k", connection=second)
        )
        await until(lambda: blocked(database))
        await first.commit()
        two = await asyncio.wait_for(sending, 10)
        await order(second)
        await second.commit()
    assert (one.position, two.position, two.duplicate) == (1, 1, True)
    assert (await orders(database), await inbox(database)) == (1, 1)


async def blocked(database: Database) -> bool:
    return bool(
        await database.value(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    )


async def test_spawn_that_waits_cannot_be_in_a_transaction(db: SessionsDB) -> None:
    async with db.engine.connect() as connection:
        with pytest.raises(InvalidArgument, match="wait_for_first_reply"):
            await db.broker.spawn(
                "chat",
                SpawnRequest(prompt="go", wait_for_first_reply=True),
                connection=connection,
            )


async def test_something_that_is_no_connection_is_refused(
    database: Database, db: SessionsDB
) -> None:
    async with db.engine.connect() as connection:
        for wrong in (db.engine, connection.sync_connection, "connection", database):
            with pytest.raises(InvalidArgument, match="AsyncConnection"):
                await db.broker.send("chat", "hello", connection=wrong)


@pytest.fixture
def elsewhere(kind: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database of the other kind."""
    other = "postgres_server" if kind == "sqlite" else "sqlite_files"
    with request.getfixturevalue(other).new_database() as database:
        yield database


async def test_a_connection_to_another_kind_of_database_is_refused(
    elsewhere: Database, db: SessionsDB
) -> None:
    async with SessionsDB(elsewhere.url) as other, other.engine.connect() as connection:
        with pytest.raises(InvalidArgument, match="same database"):
            await db.broker.send("chat", "hello", connection=connection)


async def test_a_connection_in_autocommit_is_refused(
    database: Database, db: SessionsDB, engine: AsyncEngine
) -> None:
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await order(connection)
        with pytest.raises(InvalidArgument, match="AUTOCOMMIT"):
            await db.broker.send("chat", "order 1", connection=connection)
        with pytest.raises(InvalidArgument, match="AUTOCOMMIT"):
            await db.broker.spawn("chat", SpawnRequest(prompt="go"), connection=connection)
        await order(connection, 2)
        assert (await orders(database), await inbox(database)) == (2, 0)
        assert not (await db.broker.send("chat", "free")).duplicate  # nothing is locked
    assert (await orders(database), await inbox(database)) == (2, 1)


async def test_a_connection_of_an_engine_in_autocommit_is_refused(
    database: Database, db: SessionsDB
) -> None:
    engine = create_async_engine(urls.parse(database.url), isolation_level="AUTOCOMMIT")
    try:
        async with engine.begin() as connection:
            with pytest.raises(InvalidArgument, match="AUTOCOMMIT"):
                await db.broker.send("chat", "order 1", connection=connection)
    finally:
        await engine.dispose()
    assert await inbox(database) == 0


async def test_a_transaction_that_the_caller_begins_by_hand_is_used(
    database: Database, db: SessionsDB, engine: AsyncEngine
) -> None:
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        for end, sent in (("ROLLBACK", 0), ("COMMIT", 1)):
            await connection.exec_driver_sql("BEGIN")
            await db.broker.send("chat", "order 1", connection=connection)
            await connection.exec_driver_sql(end)
            assert await inbox(database) == sent


async def test_others_are_told_after_the_callers_commit(
    database: Database, db: SessionsDB, own_engine: AsyncEngine
) -> None:
    async with (
        open_database_of(db).notifier.subscribe("work") as signal,
        own_engine.connect() as connection,
    ):
        await db.broker.send("chat", "hello", connection=connection)
        await connection.commit()
        assert await signal.wait(5)


async def test_many_sends_over_one_connection_hint_once_a_commit(
    db: SessionsDB, own_engine: AsyncEngine
) -> None:
    async with own_engine.connect() as connection:
        listeners = []
        for _ in range(3):
            for _ in range(5):
                await db.broker.send("chat", "hello", connection=connection)
            await connection.commit()
            assert connection.sync_connection is not None
            listeners.append(len(list(connection.sync_connection.dispatch.commit)))
    assert listeners == [1, 1, 1]


async def test_sends_in_a_transaction_keep_their_order_with_others(
    database: Database, db: SessionsDB, own_engine: AsyncEngine
) -> None:
    """A send during an open transaction of the caller gets a later position."""
    async with own_engine.connect() as connection:
        inside = await db.broker.send("chat", "first", connection=connection)
        outside = asyncio.create_task(db.broker.send("chat", "second"))
        if database.kind == "postgresql":
            await until(lambda: blocked(database))
        else:
            await asyncio.sleep(0)
        assert not outside.done()
        await connection.commit()
        assert (inside.position, (await outside).position) == (1, 2)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_transaction_may_await_other_calls_while_others_send_to_its_session(
    db: SessionsDB, engine: AsyncEngine
) -> None:
    await db.broker.register("other", channel="cli", peer="ada")
    async with engine.connect() as connection:
        await db.broker.send("chat", "in the transaction", connection=connection)
        waiting = [
            asyncio.create_task(db.broker.send("chat", "behind it")),
            asyncio.create_task(db.store.append("chat", [{"role": "user", "content": "note"}])),
            asyncio.create_task(db.broker.update("chat", model="m")),
        ]
        # All of these would wait for the transaction, in a batch with those above or behind it.
        async with asyncio.timeout(20):
            await asyncio.gather(
                *(db.broker.send("other", str(number)) for number in range(3)),
                db.store.append("other", [{"role": "user", "content": "note"}]),
                db.broker.update("other", model="m"),
            )
        assert not any(task.done() for task in waiting)
        await connection.commit()
    assert (await waiting[0]).position == 2
    await asyncio.gather(*waiting)
    # Batches have requests of both sessions again.
    await asyncio.gather(db.broker.send("chat", "later"), db.broker.send("other", "later"))
    assert not open_database_of(db).locked_sessions


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("ids", [1, 5_000])
def test_sends_in_transactions_that_have_ended_take_no_memory(ids: int) -> None:
    locked = LockedSessions()
    engine = create_engine("sqlite://")
    with engine.connect() as open_one, open_one.begin():
        tracemalloc.start()
        for number in range(5_000):
            with engine.connect() as connection, connection.begin():
                with locked.add(("default", f"s{number % ids}"), connection):
                    assert ("default", f"s{number % ids}") in locked
                with locked.add(("default", "held"), open_one):
                    pass
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 300_000
        assert ("default", "held") in locked
        assert ("default", "s0") not in locked
    assert not locked


async def test_a_spawn_cancelled_anywhere_leaves_no_half_of_itself(
    database: Database, own_engine: AsyncEngine
) -> None:
    """After a cancellation the child is there as a whole or not at all, and no lock is left."""
    request = SpawnRequest(prompt="go")
    rows = children = 0
    async with SessionsDB(database.url, limits=Limits(children=1_000)) as db:
        connection = await own_engine.connect()
        await order(connection, 0)

        async def check(finished: bool) -> None:
            nonlocal connection, rows, children
            try:
                await connection.commit()
                rows += 1
            except SQLAlchemyError:  # the connection was closed
                assert database.kind == "postgresql"
                await connection.rollback()
            await connection.close()
            prompts = await inbox(database)
            assert prompts - children == 1 if finished else prompts - children in (0, 1)
            assert len(await db.broker.list(parent="chat")) == prompts
            assert await orders(database) == rows
            children = prompts
            await asyncio.wait_for(db.broker.update("chat", model="not locked"), 5)
            connection = await own_engine.connect()
            await order(connection, rows)

        assert await cancel_everywhere(
            lambda: db.broker.spawn("chat", request, connection=connection), check
        )
        await connection.close()


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_send_cancelled_on_sqlite_leaves_the_transaction_usable(
    database: Database, db: SessionsDB, own_engine: AsyncEngine
) -> None:
    async with own_engine.connect() as connection:
        rows = 0

        async def check(finished: bool) -> None:
            nonlocal rows
            rows += 1
            await order(connection, rows)

        await cancel_everywhere(
            lambda: db.broker.send("chat", "hello", connection=connection), check
        )
        await connection.commit()
    assert await orders(database) == rows
    [details] = await database.query("SELECT tail, pending FROM mailboxes")
    assert details == (await inbox(database), await inbox(database))


# ---- an engine of the caller --------------------------------------------------------------------


async def test_a_brought_engine_serves_and_is_not_disposed(
    database: Database, own_engine: AsyncEngine
) -> None:
    async with SessionsDB(own_engine) as db:
        assert db.engine is own_engine
        await db.broker.send("chat", "hello")
    async with own_engine.connect() as connection:
        pool = own_engine.pool
        count = await connection.execute(text("SELECT count(*) FROM inbox"))
        assert count.scalar() == 1
        assert own_engine.pool is pool
    async with SessionsDB(own_engine, namespace="other") as db:
        assert await db.broker.list() == []


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("opened_before", [True, False])
async def test_every_connection_of_a_brought_sqlite_engine_is_made_safe(
    empty_database: Database, opened_before: bool
) -> None:
    engine = create_async_engine(urls.parse(f"{empty_database.url}?timeout=0.2"))
    if opened_before:
        connections = [await engine.connect() for _ in range(3)]
        for connection in connections:
            await connection.execute(text("SELECT 1"))
            await connection.close()
    async with SessionsDB(engine) as db:
        held = [await engine.connect() for _ in range(4)]
        for connection in held:
            assert await pragmas(connection) == {
                "journal_mode": "wal",
                "foreign_keys": 1,
                "busy_timeout": 200,
                "synchronous": 2,
            }
            await connection.rollback()
        one = held[0]
        # A transaction takes the write lock at its start, so the other has to wait.
        await one.execute(text("SELECT 1"))
        with pytest.raises(StorageError, match="locked"):
            await db.broker.register("chat", channel="cli", peer="ada")
        await one.rollback()
        await db.broker.register("chat", channel="cli", peer="ada")
        for connection in held:
            await connection.close()
    await engine.dispose()


async def pragmas(connection: AsyncConnection) -> dict[str, object]:
    names = ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
    return {name: (await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in names}


async def test_an_engine_over_another_driver_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    engine.sync_engine.dialect.driver = "other"
    with pytest.raises(InvalidArgument, match=r"sqlite\+other"):
        SessionsDB(engine)
    await engine.dispose()
