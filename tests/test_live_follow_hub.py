"""What followers cost, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from devtools.databases import Database
from sessionsdb import Event, SessionsDB, SessionsDBError
from sessionsdb.database import open_database_of
from sessionsdb.operations.keys import SessionKey, digest_of
from sessionsdb.runtime import follow_hub
from tests.support.following import Follow, following, short, stream
from tests.support.turns import answer_next, claim
from tests.support.waiting import until


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """The SQL statements of the handles that are opened after this fixture."""
    statements: list[str] = []

    def record(_c: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", record)
    yield statements
    event.remove(Engine, "before_cursor_execute", record)


async def register(db: SessionsDB, count: int) -> list[str]:
    ids = [f"s{n}" for n in range(count)]
    await asyncio.gather(*(db.broker.register(id, channel="test", peer="tester") for id in ids))
    return ids


class Looks:
    """The looks of a hub, each with its keys."""

    def __init__(self, db: SessionsDB, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[Sequence[SessionKey]] = []
        hub = open_database_of(db).follow_hub
        look = hub._look

        async def recorded(keys: Sequence[SessionKey]) -> follow_hub._Found:
            found = await look(keys)
            self.keys.append(keys)
            return found

        monkeypatch.setattr(hub, "_look", recorded)


async def test_a_thousand_idle_followers_of_a_thousand_sessions_are_one_query_a_look(
    seen: list[str], db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await register(db, 1_000)
    looks = Looks(db, monkeypatch)
    waiting: list[asyncio.Future[Event]] = []
    async with AsyncExitStack() as stack:
        follows = [await stack.enter_async_context(following(db, id)) for id in ids]
        for first in await asyncio.gather(*(follow.next() for follow in follows)):
            assert first.type == "idle"
        waiting = [asyncio.ensure_future(follow.next(within=90)) for follow in follows]
        try:
            await until(lambda: looks.keys and len(looks.keys[-1]) == 1_000)
            looks.keys.clear()
            seen.clear()
            await until(lambda: len(looks.keys) >= 3)
            assert [len(keys) for keys in looks.keys] == [1_000] * 3
            assert len(seen) == 3, "one query a look, and nothing else"
            await db.broker.send("s7", "wakes one")
            assert short(await waiting[7]) == "queued wakes one"
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    await nothing_is_left(db)


async def nothing_is_left(db: SessionsDB) -> None:
    hub = open_database_of(db).follow_hub
    await until(lambda: not hub.followers)
    await until(lambda: hub._task is None)
    assert not hub._by_digest
    notifier = open_database_of(db).notifier
    assert not any(hub._due in signals for signals in notifier._signals.values())


async def test_followers_at_one_place_share_a_read(seen: list[str], db: SessionsDB) -> None:
    await register(db, 1)
    async with AsyncExitStack() as stack:
        follows = [await stack.enter_async_context(following(db, "s0")) for _ in range(20)]
        await asyncio.gather(*(follow.next() for follow in follows))
        seen.clear()
        waiting = [asyncio.ensure_future(follow.next()) for follow in follows]
        await db.broker.send("s0", "hello")
        told = await asyncio.gather(*waiting)
        assert {short(one) for one in told} == {"queued hello"}
        queued = [sql for sql in seen if "i.enqueued_at, i.finished_at" in sql]
        assert len(queued) == 1


async def test_no_follower_changes_what_another_one_gets(db: SessionsDB) -> None:
    await register(db, 1)
    async with following(db, "s0") as first, following(db, "s0") as second:
        await asyncio.gather(first.next(), second.next())

        async def both(type: str) -> list[Any]:
            """Wait for the next events of a type, while both followers are at one place."""
            while True:
                one, other = await asyncio.gather(first.next(), second.next())
                assert one == other
                if one.type == type:
                    return [one, other]

        await db.broker.send("s0", "hello", metadata={"tags": ["a"]})
        one, other = await both("queued")
        one.message.metadata["tags"].clear()
        assert other.message.metadata == {"tags": ["a"]}
        [lease] = await claim(db)
        one, other = await both("turn")
        one.receipts.clear()
        assert [receipt.position for receipt in other.receipts] == [1]
        await stream(db, lease, {"files": ["x"]})
        one, other = await both("data")
        one.data["files"].clear()
        assert other.data == {"files": ["x"]}


async def test_a_slow_consumer_holds_one_batch_and_catches_up(db: SessionsDB) -> None:
    await register(db, 1)
    async with following(db, "s0") as follow:
        await follow.next()
        tracemalloc.start()
        try:
            for _ in range(20):
                await db.store.append(
                    "s0", [{"role": "user", "content": "x" * 10_000} for _ in range(50)]
                )
            [follower] = open_database_of(db).follow_hub.followers["default", "s0"]
            await until(lambda: follower.batch)
            assert len(follower.batch) <= 100
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert held < 10_000_000, "10 MB were written, and one batch has 1 MB"
        seqs = []
        while len(seqs) < 1_000:
            event = await follow.next()
            if event.type == "message":
                seqs.append(event.message.seq)
        assert seqs == list(range(1, 1_001))


@pytest.mark.parametrize("way", ["append", "send"])
async def test_a_slow_consumer_holds_few_long_messages(db: SessionsDB, way: str) -> None:
    await register(db, 1)
    texts = [f"{number} {'x' * 200_000}" for number in range(30)]
    async with following(db, "s0") as follow:
        await follow.next()
        [follower] = open_database_of(db).follow_hub.followers["default", "s0"]
        tracemalloc.start()
        try:
            if way == "append":
                await db.store.append("s0", [{"role": "user", "content": text} for text in texts])
            else:
                async with db.engine.begin() as connection:
                    for text in texts:
                        await db.broker.send("s0", text, connection=connection)
            await until(lambda: follower.batch)
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert held < 3_000_000, "6 MB were written, and one batch has 1 MB"
        kind = "message" if way == "append" else "queued"
        assert await follow.take(30) == [f"{kind} {text}" for text in texts]


@pytest.mark.parametrize("way", ["close", "break", "cancel", "collect", "never begun"])
@pytest.mark.parametrize("subtree", [False, True])
async def test_an_iterator_that_ends_leaves_nothing(
    db: SessionsDB, way: str, subtree: bool
) -> None:
    await register(db, 1)
    tasks = asyncio.all_tasks()
    events = db.broker.follow("s0", subtree=subtree)
    if way == "never begun":
        del events
    elif way == "close":
        await anext(events)
        await events.aclose()
    elif way == "break":
        async for _ in events:
            break
        del events
    elif way == "cancel":
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        del waiting
    else:
        await anext(events)
        del events
    gc.collect()
    await nothing_is_left(db)
    await until(
        lambda: asyncio.all_tasks() - tasks - {open_database_of(db).notifier._watcher} == set()
    )


async def test_a_closed_handle_ends_its_followers(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await register(db, 1)
        events = db.broker.follow("s0")
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
    with pytest.raises(SessionsDBError, match="closed"):
        await waiting


async def test_followers_work_after_a_close_that_came_before_the_first_look(
    database: Database,
) -> None:
    async with SessionsDB(database.url) as db:
        await register(db, 1)
        events = db.broker.follow("s0")
        _, told = await asyncio.gather(db.close(), anext(events), return_exceptions=True)
        assert "closed" in str(told)
        async with db, following(db, "s0") as follow:
            assert await follow.take(1) == ["idle"]


async def test_a_hint_about_other_sessions_causes_no_look(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(db, 2)
    await db.broker.send("s1", "hello")
    [lease] = await claim(db)
    hub = open_database_of(db).follow_hub
    async with following(db, "s0") as follow:
        await follow.next()
        await until(lambda: hub._poll_seconds == follow_hub.POLL_SECONDS)
        hub._next_poll += 600  # on a loaded machine the writes below take longer than a poll
        looks = Looks(db, monkeypatch)
        for number in range(10):
            await stream(db, lease, "x", first=number, start=number)
        assert looks.keys == []
        await answer_all(db, follow)


async def test_a_poll_follows_soon_after_a_hint_that_names_a_session(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit names its session, and the claim or the append behind it wakes no topic. The file of
    SQLite is in memory, because every commit to a file makes the hub look at all sessions."""
    url = database.url if database.kind == "postgresql" else "sqlite:///:memory:"
    async with SessionsDB(url) as db, following_of_one(db) as follow:
        hub = open_database_of(db).follow_hub
        await until(lambda: hub._poll_seconds == follow_hub.POLL_SECONDS)
        hub._next_poll += 600
        await db.store.append("s0", [{"role": "user", "content": "first"}])
        open_database_of(db).notifier.notify("done", frozenset({digest_of(("default", "s0"))}))
        assert await follow.until("message first") == ["message first"]
        await db.store.append("s0", [{"role": "user", "content": "second"}])
        assert await follow.until("message second") == ["message second"]


@asynccontextmanager
async def following_of_one(db: SessionsDB) -> AsyncIterator[Follow]:
    """Follow a session that idles, and listen to other processes."""
    async with open_database_of(db).notifier.subscribe("pieces") as listening:
        await register(db, 1)
        if db.engine.dialect.name == "postgresql":
            assert await listening.wait(20)
        async with following(db, "s0") as follow:
            await follow.next()
            yield follow


async def answer_all(db: SessionsDB, follow: Follow) -> None:
    await db.broker.send("s0", "mine")
    await answer_next(db, "yes")
    await follow.until("idle")


async def test_a_commit_of_another_process_is_seen(db: SessionsDB, database: Database) -> None:
    await register(db, 1)
    async with following(db, "s0") as follow, SessionsDB(database.url) as other:
        await follow.next()
        await other.broker.send("s0", "from afar")
        await answer_next(other, "yes")
        told = await follow.until("idle")
    assert [t for t in told if "started" not in t] == [
        "queued from afar", "message from afar", "message yes", "turn done", "idle",
    ]  # fmt: skip


async def test_no_pieces_are_read_for_a_session_that_does_not_stream(
    seen: list[str], db: SessionsDB
) -> None:
    await register(db, 1)
    async with following(db, "s0") as follow:
        await follow.next()
        await db.broker.send("s0", "hello")
        await answer_next(db, "yes")
        await follow.until("idle")
        assert not [sql for sql in seen if "FROM pieces AS p" in sql]
