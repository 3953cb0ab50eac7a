"""Handles that are made without a block: they open at their first use, and close once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import (
    HandleOpenedElsewhere,
    Receipt,
    SchemaOutOfDate,
    SessionsDB,
    SessionsDBError,
    SpawnRequest,
    StorageError,
    Turn,
)
from sessionsdb.database import open_database_of
from tests.support.storage import write_lock
from tests.support.waiting import until

HELLO = {"role": "user", "content": "hello"}

Use = Callable[[SessionsDB], Awaitable[Any]]

USES: dict[str, Use] = {
    "load": lambda db: db.store.load("chat"),
    "save": lambda db: db.store.save("chat", [HELLO]),
    "append": lambda db: db.store.append("chat", [HELLO]),
    "state": lambda db: db.store.update_state("chat", {"a": 1}),
    "list": lambda db: db.broker.list(),
    "history": lambda db: db.broker.history("chat"),
    "send": lambda db: db.broker.send("chat", "hello"),
    "spawn": lambda db: db.broker.spawn("chat", SpawnRequest(prompt="go")),
    "wait": lambda db: db.broker.wait(Receipt(session_id="chat", position=1), timeout=0.01),
    "end": lambda db: db.broker.end("chat"),
    "follow": lambda db: anext(db.broker.follow("chat")),
    "worker": lambda db: db.in_namespace("idle").worker(answer).run_until_idle(),
}


async def answer(turn: Turn) -> str:
    return "yes"


@pytest.fixture
async def prepared(database: Database) -> Database:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        await db.broker.send("chat", "hello")
    return database


class Openings:
    """The openings of a database."""

    def __init__(self, db: SessionsDB) -> None:
        self.count = 0
        self.begun = asyncio.Event()
        runner = open_database_of(db).runner
        opened = runner.open

        async def counted() -> None:
            self.count += 1
            self.begun.set()
            await opened()

        runner.open = counted


@pytest.mark.parametrize("name", USES)
async def test_the_first_use_opens_and_close_closes(prepared: Database, name: str) -> None:
    db = SessionsDB(prepared.url)
    await asyncio.wait_for(USES[name](db), 10)
    await db.close()
    with pytest.raises(SessionsDBError, match=r"not open.*closed.*async with.*db\.open\(\)"):
        await asyncio.wait_for(USES[name](db), 10)
    await db.close()


async def test_a_handle_can_be_made_without_an_event_loop(prepared: Database) -> None:
    def make() -> SessionsDB:
        return SessionsDB(prepared.url)

    db = await asyncio.to_thread(make)
    try:
        assert await db.store.version("chat") is not None
    finally:
        await db.close()


async def test_a_worker_that_is_stopped_while_it_opens_the_database_runs_no_turn(
    prepared: Database,
) -> None:
    db = SessionsDB(prepared.url)
    openings = Openings(db)
    worker = db.worker(answer)
    task = asyncio.create_task(worker.run())
    await openings.begun.wait()
    assert not open_database_of(db).is_open
    async with asyncio.timeout(20):
        await worker.stop()
        await task
    outcome = await db.broker.outcome(Receipt(session_id="chat", position=1))
    assert (outcome.status, outcome.attempts, worker.id) == ("pending", 0, None)
    await db.close()


async def test_a_worker_that_can_not_open_the_database_can_be_stopped(tmp_path: Path) -> None:
    db = SessionsDB(f"sqlite:///{tmp_path}/nowhere/x.db")
    openings = Openings(db)
    worker = db.worker(answer)
    task = asyncio.create_task(worker.run())
    await openings.begun.wait()
    async with asyncio.timeout(20):
        await worker.stop()
        with pytest.raises(StorageError, match="unable to open"):
            await task
    await worker.stop()


async def test_many_first_uses_at_once_open_it_once(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    openings = Openings(db)
    other = db.in_namespace("other")
    await asyncio.gather(
        *(USES[name](db) for name in USES if name not in ("end", "worker")),
        *(other.store.append("chat", [HELLO]) for _ in range(10)),
    )
    assert openings.count == 1
    await db.close()
    with pytest.raises(SessionsDBError, match="not open"):
        await other.store.load("chat")


async def test_a_cancelled_first_use_breaks_no_other(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    openings = Openings(db)
    tasks = [asyncio.create_task(db.store.version("chat")) for _ in range(5)]
    await openings.begun.wait()
    tasks[0].cancel()
    tasks[3].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in answers] == [
        True, False, False, True, False,
    ]  # fmt: skip
    assert await db.store.version("chat") is not None
    await db.close()


async def test_if_all_first_uses_are_cancelled_the_next_one_opens(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    openings = Openings(db)
    tasks = [asyncio.create_task(db.broker.list()) for _ in range(3)]
    await openings.begun.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(await db.broker.list()) == 1
    await db.close()


async def test_a_first_use_that_fails_leaves_it_to_be_opened(empty_database: Database) -> None:
    db = SessionsDB(empty_database.url, migrate=False)
    answers = await asyncio.gather(*(db.broker.list() for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in answers] == [SchemaOutOfDate] * 3
    async with SessionsDB(empty_database.url, migrate=True):
        pass
    assert await db.broker.list() == []
    await db.close()


async def test_the_first_use_migrates_if_the_handle_may(empty_database: Database) -> None:
    db = SessionsDB(empty_database.url, migrate=True)
    assert await db.in_namespace("acme").store.append("chat", [HELLO]) == 1
    await db.close()


async def test_open_is_a_first_use_and_opens_again_after_close(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    assert await db.open() is db
    await db.open()
    for round in range(3):
        assert await db.store.append("new", [HELLO]) == round + 1
        await db.close()
        with pytest.raises(SessionsDBError, match="not open"):
            await db.store.load("new")
        await db.open()
    await db.close()


async def test_close_of_a_handle_that_was_never_open_closes_it(database: Database) -> None:
    db = SessionsDB(database.url)
    await db.close()
    with pytest.raises(SessionsDBError, match="not open"):
        await db.broker.list()
    async with db:
        assert await db.broker.list() == []


async def test_a_block_leaves_a_handle_open_that_was_used_before(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    await db.broker.list()
    async with db.in_namespace("other") as other:
        await other.store.append("chat", [HELLO])
    assert len(await db.broker.list()) == 1
    await db.close()


async def test_close_inside_of_a_block_closes(prepared: Database) -> None:
    async with SessionsDB(prepared.url) as db:
        await db.close()
        with pytest.raises(SessionsDBError, match="not open"):
            await db.broker.list()
    async with db:
        assert len(await db.broker.list()) == 1


async def test_close_waits_for_the_writes_under_way(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    await db.open()
    writes = [asyncio.create_task(db.store.append(f"s{n}", [HELLO])) for n in range(20)]
    await asyncio.sleep(0)
    await db.close()
    assert await asyncio.gather(*writes) == [1] * 20
    async with SessionsDB(prepared.url) as other:
        assert len(await other.broker.list()) == 21


@asynccontextmanager
async def blocked_writes(database: Database) -> AsyncIterator[None]:
    """Hold a lock that a send to the session ``chat`` waits for."""
    if database.kind == "sqlite":
        with write_lock(database.path):
            yield
        return
    connection = await database.connect_to_postgres()
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM mailboxes WHERE session_id = 'chat' FOR UPDATE")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def closing_behind_a_send(db: SessionsDB, database: Database) -> AsyncIterator[None]:
    """A close that has begun, and waits for a send. At the end of the block both can end."""
    async with blocked_writes(database):
        sending = asyncio.create_task(db.broker.send("chat", "blocked"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(db.close())
        await until(lambda: open_database_of(db).was_closed)
        yield
        assert not closing.done()
    await closing
    assert (await sending).position == 2


FIRST = Receipt(session_id="chat", position=1)


async def follow_to_the_end(db: SessionsDB, **options: Any) -> None:
    async with aclosing(db.broker.follow("chat", **options)) as events:
        async for _ in events:
            pass


SHARED_USES: dict[str, Use] = {
    "wait": lambda db: db.broker.wait(FIRST, timeout=60),
    "wait at once": lambda db: db.broker.wait(FIRST, timeout=0),
    "wait of a session": lambda db: db.broker.wait(FIRST, timeout=60, waiter="other"),
    "follow": follow_to_the_end,
    "follow a tree": lambda db: follow_to_the_end(db, subtree=True),
    "send": USES["send"],
    "update": lambda db: db.broker.update("chat", peer="bob"),
    "append": USES["append"],
    "save": USES["save"],
    "load": USES["load"],
    "history": USES["history"],
    "worker": USES["worker"],
}
"""Calls that share batches, which a close waits for. And calls that last, which it ends."""


@pytest.mark.parametrize("name", SHARED_USES)
async def test_a_use_that_begins_while_it_closes_is_refused_at_once(
    prepared: Database, name: str
) -> None:
    db = SessionsDB(prepared.url)
    await db.broker.register("other", channel="cli", peer="ada")
    async with closing_behind_a_send(db, prepared):
        with pytest.raises(SessionsDBError, match="not open"):
            await asyncio.wait_for(SHARED_USES[name](db), 5)


@pytest.mark.parametrize("name", ["wait", "wait of a session", "follow", "follow a tree"])
async def test_close_ends_the_waits_and_the_followers_at_once(
    prepared: Database, name: str
) -> None:
    db = SessionsDB(prepared.url)
    await db.broker.register("other", channel="cli", peer="ada")
    use = asyncio.create_task(SHARED_USES[name](db))
    database = open_database_of(db)
    await until(lambda: database.outcome_waiter.waiters.by_message or database.follow_hub.followers)
    async with closing_behind_a_send(db, prepared):
        with pytest.raises(SessionsDBError, match="the database handle was closed"):
            await asyncio.wait_for(use, 5)


async def test_a_stream_of_calls_does_not_keep_it_open(prepared: Database) -> None:
    db = SessionsDB(prepared.url)

    async def append_forever(n: int) -> None:
        while True:
            await db.store.append(f"s{n}", [HELLO])

    callers = [asyncio.create_task(append_forever(n)) for n in range(8)]
    await until(lambda: db.store.version("s7"))
    await asyncio.wait_for(db.close(), 10)
    for caller in callers:
        with pytest.raises(SessionsDBError, match="not open"):
            await caller


async def test_a_stream_of_writes_that_share_no_batch_does_not_keep_it_open(
    prepared: Database,
) -> None:
    db = SessionsDB(prepared.url)
    database = open_database_of(db)
    accepted = accepted_since_close = 0

    async def write_on(n: int) -> None:
        nonlocal accepted, accepted_since_close
        while accepted_since_close < 500:
            await db.store.update_state("chat", {f"n{n}": 1})
            accepted += 1
            accepted_since_close += database.was_closed

    callers = [asyncio.create_task(write_on(n)) for n in range(8)]
    await until(lambda: accepted > 16)
    await asyncio.wait_for(db.close(), 60)
    assert accepted_since_close < 500
    for caller in callers:
        with pytest.raises(SessionsDBError, match="not open"):
            await caller


async def test_no_follower_is_left_behind_a_close(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    events = db.broker.follow("chat")
    await anext(events)
    await db.close()
    assert open_database_of(db).follow_hub.followers == {}
    await events.aclose()


async def test_a_use_that_waits_for_a_close_does_not_open_it_again(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    openings = Openings(db)
    first = asyncio.create_task(db.broker.list())
    await openings.begun.wait()
    closing = asyncio.create_task(db.close())
    await first
    await closing
    with pytest.raises(SessionsDBError, match="not open"):
        await db.broker.list()
    assert openings.count == 1


async def test_a_send_in_a_transaction_of_the_caller_may_be_the_first_use(
    prepared: Database,
) -> None:
    db = SessionsDB(prepared.url)
    async with db.engine.begin() as connection:
        receipt = await db.broker.send("chat", "with mine", connection=connection)
    assert (await db.broker.outcome(receipt)).status == "pending"
    await db.close()


def test_a_handle_that_one_loop_opened_is_refused_in_another(prepared: Database) -> None:
    db = SessionsDB(prepared.url)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(db.broker.list())

        def elsewhere() -> None:
            with pytest.raises(HandleOpenedElsewhere):
                asyncio.run(db.close())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        loop.run_until_complete(db.close())
    finally:
        loop.close()
    asyncio.run(_open_and_close(db))


async def _open_and_close(db: SessionsDB) -> None:
    async with db:
        assert len(await db.broker.list()) == 1


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_database_that_cannot_be_reached_fails_the_first_use(database: Database) -> None:
    db = SessionsDB(database.url)

    def refuse(*_: Any) -> None:
        raise OSError("no")

    event.listen(db.engine.sync_engine, "do_connect", refuse, insert=True)
    with pytest.raises((StorageError, OSError)):
        await db.broker.list()
    event.remove(db.engine.sync_engine, "do_connect", refuse)
    assert await db.broker.list() == []
    await db.close()
