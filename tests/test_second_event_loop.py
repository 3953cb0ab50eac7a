"""A handle that was closed, and opened in another event loop, does all that a new one does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb import sync as blocking
from sessionsdb.database import open_database_of
from sessionsdb.http import health
from sessionsdb.runtime import follow_hub
from sessionsdb.runtime.database_access import DONE
from tests.support.following import following, short

HELLO = {"role": "user", "content": "hello"}


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let followers learn only by notifications that something was committed."""
    monkeypatch.setattr(follow_hub, "FIRST_POLL_SECONDS", 3_600)
    monkeypatch.setattr(follow_hub, "POLL_SECONDS", 3_600)


def in_two_loops(use: Callable[[], Awaitable[None]]) -> None:
    async def once() -> None:
        async with asyncio.timeout(60):
            await use()

    for _ in range(2):
        asyncio.run(once())


def test_a_follower_goes_on_behind_its_first_events(database: Database) -> None:
    db = SessionsDB(database.url)

    async def follow() -> None:
        async with db:
            await db.store.append("chat", [HELLO])
            async with following(db, "chat") as events:
                assert await events.take(1) == ["idle"]
                for _ in range(3):
                    await db.store.append("chat", [HELLO])
                    assert await events.take(1) == ["message hello"]

    in_two_loops(follow)


def test_a_follower_hears_of_the_commits_of_another_process(
    database: Database, no_polls: None
) -> None:
    db = SessionsDB(database.url)

    async def follow() -> None:
        async with db, SessionsDB(database.url) as other:
            await other.broker.register("chat", channel="c", peer="p", exist_ok=True)
            async with following(db, "chat") as events:
                assert await events.take(1) == ["idle"]
                for text in "ab":
                    await other.broker.send("chat", text)
                    assert await events.take(1) == [f"queued {text}"]
            await other.store.delete("chat")

    in_two_loops(follow)


def test_a_subscriber_hears_of_the_commits_of_another_process(database: Database) -> None:
    db = SessionsDB(database.url)

    async def hear() -> None:
        async with db, SessionsDB(database.url) as other:
            await other.broker.register("chat", channel="c", peer="p", exist_ok=True)
            async with open_database_of(db).notifier.subscribe(DONE) as done:
                assert await done.wait(20)  # the watcher has begun
                for _ in range(2):
                    await other.broker.cancel(await other.broker.send("chat", "hello"))
                    assert await done.wait(20)

    in_two_loops(hear)


def test_many_tasks_may_open_it_at_once(database: Database) -> None:
    db = SessionsDB(database.url)

    async def open_and_close() -> None:
        await asyncio.gather(*(db.open() for _ in range(3)))
        assert await asyncio.gather(*(db.broker.list() for _ in range(3))) == [[], [], []]
        await asyncio.gather(*(db.close() for _ in range(3)))

    in_two_loops(open_and_close)


def test_many_requests_may_ask_its_server_for_its_health_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "KEPT_SECONDS", 0)
    db = SessionsDB(database.url)
    app = health.Health(no_other_path, db)

    async def ask() -> None:
        async with db:
            assert await asyncio.gather(*(status(app, "/health") for _ in range(3))) == [200] * 3

    in_two_loops(ask)


async def no_other_path(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError(scope["path"])


async def status(app: ASGIApp, path: str) -> int:
    """Return the status of a GET request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app({"type": "http", "method": "GET", "path": path}, receive, send)
    return int(sent[0]["status"])


def test_a_blocking_handle_follows_in_each_of_its_blocks(
    database: Database, no_polls: None
) -> None:
    db = blocking.SessionsDB(database.url)
    for _ in range(2):
        with db, blocking.SessionsDB(database.url) as other:
            other.broker.register("chat", channel="c", peer="p", exist_ok=True)
            events = db.broker.follow("chat")
            assert short(next(events)) == "idle"
            for text in "ab":
                other.broker.send("chat", text)
                assert short(next(events)) == f"queued {text}"
            events.close()
            other.store.delete("chat")
