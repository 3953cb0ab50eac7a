"""Batched calls: one statement on PostgreSQL, one thread hop on SQLite, many requests a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    HopLimitReached,
    InboxFull,
    Limits,
    Receipt,
    SessionsDB,
    StorageError,
    UnknownSession,
)
from sessionsdb.database import open_database_of
from sessionsdb.engine import batcher
from sessionsdb.engine.postgresql.notifier import PostgresNotifier
from sessionsdb.runtime import batched_calls
from tests.support.hops import ours, thread_hops
from tests.support.proxy import proxy_to
from tests.support.refusal import forbid
from tests.support.turns import claim
from tests.support.waiting import until

HELLO = {"role": "user", "content": "hello"}


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_lone_append_or_send_is_one_statement_on_postgresql(database: Database) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        calls = (
            (1, lambda: db.store.append("chat", [HELLO])),
            (1, lambda: db.store.append("chat", [HELLO] * 100)),
            (1, lambda: db.broker.send("chat", "hello")),
            (2, lambda: db.broker.send("chat", "hello", idempotency_key="k")),  # looked up first
            (2, lambda: db.broker.send("chat", "hello", sender="chat")),
            (1, lambda: db.broker.history("chat")),
        )
        notifier = open_database_of(db).notifier
        assert isinstance(notifier, PostgresNotifier)
        for number, (statements, call) in enumerate((*calls, *calls)):
            # A NOTIFY in flight uses the connection, and the call would open another one.
            await until(lambda: not notifier._is_sending)
            proxy.executed.clear()
            await call()
            if number >= len(calls):  # at first the driver looks types up
                assert len(ours(proxy.executed)) == statements, proxy.executed
        proxy.executed.clear()
        await db.store.save("chat", [HELLO])
        assert any(s.startswith("BEGIN") for s in proxy.executed), "a BEGIN would be heard"
        assert "COMMIT;" in proxy.executed


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_lone_append_or_send_is_one_thread_hop_on_sqlite(db: SessionsDB) -> None:
    with thread_hops() as hops:
        for call in (
            lambda: db.store.append("chat", [HELLO]),
            lambda: db.store.append("new", [HELLO] * 100),
            lambda: db.broker.send("chat", "hello"),
            lambda: db.broker.send("chat", "hello", idempotency_key="k"),
            lambda: db.broker.history("chat"),
        ):
            hops.clear()
            await call()
            assert len(hops) == 1, hops


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_concurrent_sends_go_in_few_thread_hops_on_sqlite(db: SessionsDB) -> None:
    with thread_hops() as hops:
        receipts = await asyncio.gather(*(db.broker.send("chat", str(n)) for n in range(400)))
    assert len(hops) <= 4
    assert [r.position for r in receipts] == list(range(1, 401))


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_concurrent_sends_go_in_few_statements_on_postgresql(database: Database) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await db.broker.send("chat", "0")
        proxy.executed.clear()
        receipts = await asyncio.gather(*(db.broker.send("chat", str(n)) for n in range(400)))
        assert len(ours(proxy.executed)) <= 4
    assert [r.position for r in receipts] == list(range(2, 402))


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("name", ["send", "append"])
async def test_large_requests_share_no_statement(
    database: Database, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(batched_calls, "MAX_CHARACTERS", 10_000)
    large = {"role": "user", "content": "x" * 3_000}
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "send": lambda: db.broker.send("chat", large),
            "append": lambda: db.store.append("chat", [large, HELLO]),
        }
        await calls[name]()
        proxy.executed.clear()
        await asyncio.gather(*(calls[name]() for _ in range(30)))
        assert 10 <= len(ours(proxy.executed)) <= 15


LOCK = """
SELECT 1 FROM sessions JOIN mailboxes ON session_id = id WHERE id = $1 FOR UPDATE
"""


async def is_locked_out(database: Database) -> bool:
    """Return whether a statement waits for a lock."""
    waiting = await database.value(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return int(waiting) > 0


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("name", ["send", "append", "update"])
async def test_a_session_that_another_process_locks_holds_up_no_other(
    database: Database, db: SessionsDB, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 0.01)
    calls: dict[str, Callable[[str], Coroutine[Any, Any, Any]]] = {
        "send": lambda id: db.broker.send(id, "hello"),
        "append": lambda id: db.store.append(id, [HELLO]),
        "update": lambda id: db.broker.update(id, peer="bob"),
    }
    for n in range(5):
        await db.broker.register(f"s{n}", channel="cli", peer="ada")
    stranger = await database.connect_to_postgres()
    try:
        async with stranger.transaction():
            await stranger.execute(LOCK, "chat")
            first = asyncio.create_task(calls[name]("chat"))
            await until(lambda: is_locked_out(database))
            second = asyncio.create_task(calls[name]("chat"))
            async with asyncio.timeout(10):
                await asyncio.gather(*(calls[name](f"s{n}") for n in range(5)))
            assert not first.done()
            assert not second.done()
        await asyncio.gather(first, second)
    finally:
        await stranger.close()


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_batch_that_waits_for_a_callers_transaction_does_not_hold_up_that_caller(
    database: Database, db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 0.01)
    for id in "abc":
        await db.broker.register(id, channel="cli", peer="ada")
    stranger = await database.connect_to_postgres()
    try:
        lock = stranger.transaction()
        await lock.start()
        await stranger.execute(LOCK, "a")
        batch = [asyncio.create_task(db.broker.send(id, "hello")) for id in "ab"]
        await until(lambda: is_locked_out(database))
        async with db.engine.begin() as connection, asyncio.timeout(10):
            await db.broker.send("b", "in my transaction", connection=connection)
            await lock.rollback()  # the batch has the lock of a, and waits for that of b
            await db.broker.send("c", "hello")
        assert [receipt.position for receipt in await asyncio.gather(*batch)] == [1, 2]
    finally:
        await stranger.close()


async def test_order_within_a_session_is_the_order_of_calls(db: SessionsDB) -> None:
    ids = [f"s-{n}" for n in range(3)]
    versions = await asyncio.gather(
        *(db.store.append(ids[n % 3], [{"role": "user", "content": str(n)}]) for n in range(90))
    )
    for offset, id in enumerate(ids):
        assert versions[offset::3] == list(range(1, 31))
        transcript = await db.store.load(id)
        assert transcript is not None
        assert [m["content"] for m in transcript] == [str(n) for n in range(offset, 90, 3)]


async def test_one_bad_send_of_a_batch_fails_alone(database: Database) -> None:
    await forbid(database, "forbidden")
    async with SessionsDB(database.url, limits=Limits(pending=10)) as db:
        await db.broker.register("full", channel="cli", peer="ada")
        for _ in range(10):
            await db.broker.send("full", "hello")
        answers = await asyncio.gather(
            db.broker.send("chat", "1"),
            db.broker.send("nobody", "hello"),
            db.broker.send("chat", "2"),
            db.broker.send("full", "hello"),
            db.broker.send("chat", "forbidden"),
            db.broker.send("chat", "3"),
            return_exceptions=True,
        )
    assert [a.position for a in answers if isinstance(a, Receipt)] == [1, 2, 3]
    assert isinstance(answers[1], UnknownSession)
    assert isinstance(answers[3], InboxFull)
    assert isinstance(answers[4], StorageError)
    queued = await database.query(
        "SELECT position, content FROM inbox WHERE session_id = 'chat' ORDER BY position"
    )
    assert queued == [(1, "1"), (2, "2"), (3, "3")]


async def test_a_send_is_not_refused_for_the_chain_of_another_with_its_key(db: SessionsDB) -> None:
    """Both are in one batch: the chain of the first is too long, the second comes from a user."""
    ids = [f"link-{n}" for n in range(db.limits.hops + 1)]
    for id, sender in zip(ids, [None, *ids], strict=False):
        await db.broker.register(id, channel="test", peer="tester")
        await db.broker.send(id, "go on", sender=sender)
        await claim(db)
    answers = await asyncio.gather(
        db.broker.send("chat", "first"),  # while it is in flight, the others wait
        db.broker.send("chat", "hello", sender=ids[-1], idempotency_key="k"),
        db.broker.send("chat", "hello", idempotency_key="k"),
        db.broker.send("chat", "hello", idempotency_key="k"),
        return_exceptions=True,
    )
    assert isinstance(answers[1], HopLimitReached)
    assert [(a.position, a.duplicate) for a in answers if isinstance(a, Receipt)] == [
        (1, False),
        (2, False),
        (2, True),
    ]


async def test_one_bad_append_of_a_batch_fails_alone(database: Database, db: SessionsDB) -> None:
    await forbid(database, "forbidden", table="messages")
    answers = await asyncio.gather(
        db.store.append("chat", [HELLO]),
        db.store.append("chat", [HELLO, {"role": "user", "content": "forbidden"}]),
        db.store.append("new", [HELLO]),
        db.store.append("chat", [HELLO]),
        return_exceptions=True,
    )
    assert (answers[0], answers[2], answers[3]) == (2, 1, 3)
    assert isinstance(answers[1], StorageError)
    assert await db.store.load("chat") == [HELLO, HELLO]


async def test_a_bad_append_to_a_new_session_doubles_no_other_of_its_batch(
    database: Database, db: SessionsDB
) -> None:
    await forbid(database, "forbidden", table="messages")
    answers = await asyncio.gather(
        db.store.append("chat", [HELLO]),
        db.store.append("chat", [HELLO]),
        db.store.append("bad", [{"role": "user", "content": "forbidden"}]),
        db.store.append("new", [HELLO]),
        db.store.append("chat", [HELLO]),
        return_exceptions=True,
    )
    assert isinstance(answers[2], StorageError)
    assert [answers[i] for i in (0, 1, 3, 4)] == [2, 3, 1, 4]
    assert await db.store.load("chat") == [HELLO] * 3
    assert await db.store.load("bad") is None


async def test_one_bad_write_of_a_group_fails_alone(database: Database, db: SessionsDB) -> None:
    await forbid(database, "forbidden", table="messages")
    answers = await asyncio.gather(
        db.store.save("a", [HELLO]),
        db.store.save("b", [{"role": "user", "content": "forbidden"}]),
        db.broker.register("c", channel="cli", peer="ada"),
        db.broker.end("nobody"),
        db.store.save("d", [HELLO]),
        return_exceptions=True,
    )
    assert isinstance(answers[1], StorageError)
    assert isinstance(answers[3], UnknownSession)
    assert {r.id for r in await db.store.list()} == {"chat", "a", "c", "d"}


async def test_a_send_cancelled_while_others_are_in_flight_is_not_made(
    database: Database, db: SessionsDB
) -> None:
    first = asyncio.create_task(db.broker.send("chat", "first"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is in flight: requests that come now wait for it
    second = asyncio.create_task(db.broker.send("chat", "second"))
    await asyncio.sleep(0)
    second.cancel()
    third = await db.broker.send("chat", "third")
    assert ((await first).position, third.position) == (1, 2)
    assert await database.value("SELECT count(*) FROM inbox WHERE content = 'second'") == 0


async def test_concurrent_updates_have_their_own_answers(db: SessionsDB) -> None:
    """Each caller sees its own change, also of a session that others change at the same time."""
    for number in range(4):
        await db.broker.register(f"s{number}", channel="cli", peer="ada")
    other = db.in_namespace("other")
    await other.broker.register("s0", channel="cli", peer="ada")
    models = await asyncio.gather(
        *(db.broker.update(f"s{n % 5}", model=f"m{n}") for n in range(20)),
        return_exceptions=True,
    )
    expected = [None if n % 5 == 4 else f"m{n}" for n in range(20)]
    assert [getattr(one, "model", None) for one in models] == expected
    unknown = [one for one in models if isinstance(one, UnknownSession)]
    assert len(unknown) == 4
    others = await asyncio.gather(
        other.broker.update("s0", peer="bob", metadata={"n": 1}),
        db.broker.update("s0", tools=["read"], peer="eve"),
        db.broker.update("s1", system=None),
        db.broker.update("s1"),
    )
    assert [one.peer for one in others] == ["bob", "eve", "ada", "ada"]
    assert [one.model for one in others] == [None, "m15", "m16", "m16"]
    assert others[0].metadata == {"n": 1}
    assert others[1].tools == ["read"]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_concurrent_updates_share_a_transaction_and_its_stamp(database: Database) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        ids = [f"s{number}" for number in range(64)]
        for id in ids:
            await db.broker.register(id, channel="cli", peer="ada")
        await asyncio.gather(*(db.broker.update(id, model="warm") for id in ids))
        proxy.executed.clear()
        await asyncio.gather(*(db.broker.update(id, model="new") for id in ids))
        assert proxy.executed.count("COMMIT;") <= 3
        # The answer of a whole batch is lost, and it is made once.
        proxy.cut("COMMIT", "after")
        details = await asyncio.gather(*(db.broker.update(id, model=id) for id in ids))
        assert proxy.cuts == 1
        assert [one.model for one in details] == ids


async def test_an_update_that_the_database_refuses_fails_alone(
    database: Database, db: SessionsDB
) -> None:
    await db.broker.register("other", channel="cli", peer="ada")
    refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON sessions"
    if database.kind == "sqlite":
        await database.query(
            f"{refuse} WHEN NEW.model = 'bad' BEGIN SELECT RAISE(ABORT, 'not here'); END"
        )
    else:
        await database.query(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'not here'; END $$"
        )
        await database.query(
            f"{refuse} FOR EACH ROW WHEN (NEW.model = 'bad') EXECUTE FUNCTION refuse()"
        )
    answers = await asyncio.gather(
        *(
            db.broker.update(id, model=model)
            for id, model in (("chat", "good"), ("other", "bad"), ("chat", "better"))
        ),
        return_exceptions=True,
    )
    assert isinstance(answers[1], StorageError)
    assert [getattr(one, "model", None) for one in answers] == ["good", None, "better"]
