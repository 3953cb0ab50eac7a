"""Followers that come and go while workers and the server are killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from devtools.databases import Database
from devtools.postgres_cluster import PostgresNode, postgres_node
from sessionsdb import SessionsDB
from tests.support.following import following, short
from tests.support.scale import SCALE
from tests.support.streaming_worker import streaming_worker
from tests.support.waiting import until
from tests.support.watching import Watcher

KILLS = 5 * SCALE
SESSIONS = 3
WATCHERS = 3

pytestmark = pytest.mark.timeout(180 + 60 * SCALE)


async def send(db: SessionsDB, count: int) -> None:
    for id in range(SESSIONS):
        await db.broker.register(f"s{id}", channel="test", peer="p")
        for number in range(count):
            await db.broker.send(f"s{id}", f"m{number}")


def watchers_of(db: SessionsDB, replies: int) -> list[Watcher]:
    return [
        Watcher(db, f"s{id}", replies=replies, seed=10 * id + n)
        for id in range(SESSIONS)
        for n in range(WATCHERS)
    ]


async def check_all(db: SessionsDB, watchers: list[Watcher]) -> None:
    """Each message was told to each follower once, and in order."""
    for id in range(SESSIONS):
        history = await db.broker.history(f"s{id}", 10_000)
        for watcher in watchers:
            if watcher._id == f"s{id}":
                assert watcher.messages == history
    assert sum(watcher.streamed for watcher in watchers) > 0, "replies were seen as they grew"
    assert sum(watcher.connections for watcher in watchers) > 2 * len(watchers)


async def test_followers_that_resume_while_workers_are_killed(
    db: SessionsDB, database: Database
) -> None:
    replies = 2 * KILLS
    await send(db, replies)
    watchers = watchers_of(db, replies)
    tasks = [asyncio.create_task(watcher.watch()) for watcher in watchers]
    for _ in range(KILLS):
        with streaming_worker(database.url):
            await until(lambda: any(watcher.pieces for watcher in watchers), within=30)
            await asyncio.sleep(random.uniform(0.0, 0.5))  # the kill comes at any point
    with streaming_worker(database.url):
        async with asyncio.timeout(120 + 20 * SCALE):
            await asyncio.gather(*tasks)
    await check_all(db, watchers)
    assert sum(watcher.resets for watcher in watchers) > 0, "runs were void"


@pytest.fixture
def node() -> Iterator[PostgresNode]:
    with postgres_node() as node:
        node.sql("CREATE DATABASE agents")
        asyncio.run(_migrate(node.url("agents")))
        yield node


async def _migrate(url: str) -> None:
    async with SessionsDB(url, migrate=True):
        pass


async def test_followers_go_on_when_the_server_was_killed(node: PostgresNode) -> None:
    url = node.url("agents")
    async with SessionsDB(url) as db:
        replies = 6
        await send(db, replies)
        watchers = watchers_of(db, replies)
        async with following(db, "s0", after="start") as stayed:
            tasks = [asyncio.create_task(watcher.watch()) for watcher in watchers]
            with ExitStack() as stack:
                stack.enter_context(streaming_worker(url, lease=2.0))
                for _ in range(SCALE):
                    await until(lambda: any(watcher.pieces for watcher in watchers), within=60)
                    await asyncio.to_thread(node.kill)
                    await asyncio.to_thread(node.start)
                async with asyncio.timeout(120):
                    await asyncio.gather(*tasks)
            told: list[str] = []
            while told.count("turn done") < replies:
                told.append(short(await stayed.next()))
        history = await db.broker.history("s0", 1_000)
        assert [one for one in told if one.startswith("message ")] == [
            f"message {message.content}" for message in history
        ]
        await check_all(db, watchers)
