"""A handle in another event loop, or after a fork: one clear error, at once, on both databases."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import HandleOpenedElsewhere, SessionsDB, Turn
from tests.test_namespaces import HELLO, VERBS

ELSEWHERE: dict[str, Callable[[SessionsDB], Awaitable[Any]]] = {
    **{name: lambda db, verb=verb: verb(db, "chat") for name, verb in VERBS.items()},
    "save": lambda db: db.store.save("chat", HELLO),
    "append": lambda db: db.store.append("chat", HELLO),
    "register": lambda db: db.broker.register("new", channel="c", peer="p"),
    "enter": lambda db: db.__aenter__(),
    "leave": lambda db: db.__aexit__(None, None, None),
    "another namespace": lambda db: db.in_namespace("acme").store.load("chat"),
    "worker.run": lambda db: db.worker(handler).run(),
    "worker.run_until_idle": lambda db: db.worker(handler).run_until_idle(),
}


async def handler(turn: Turn) -> str:
    return "now"


async def outcome(call: Callable[[SessionsDB], Awaitable[Any]], db: SessionsDB) -> str:
    try:
        async with asyncio.timeout(10):
            return f"answered: {await call(db)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def outcomes(db: SessionsDB) -> dict[str, str]:
    return {name: await outcome(call, db) for name, call in ELSEWHERE.items()}


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.send("chat", "hello")
    return db


async def test_every_verb_in_another_event_loop_is_told_so(db: SessionsDB) -> None:
    found = await asyncio.to_thread(lambda: asyncio.run(outcomes(db)))
    for name, answer in found.items():
        assert answer == (
            "HandleOpenedElsewhere: this handle was entered in another event loop, and its "
            "connections can be used there only; enter another SessionsDB here"
        ), name
    # Where it belongs it goes on, and nothing was done.
    assert await db.store.load("chat") == []
    assert await db.worker(handler).run_until_idle() == 1


async def test_it_is_told_too_while_its_own_loop_uses_it(db: SessionsDB) -> None:
    """A request that got into the batch of another loop would never be answered."""
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await asyncio.gather(*(db.broker.send("chat", "x") for _ in range(3)))
            await asyncio.gather(*(db.broker.history("chat") for _ in range(3)))

    busy = asyncio.create_task(load())
    found = await asyncio.to_thread(lambda: asyncio.run(outcomes(db)))
    stop.set()
    await busy
    assert {answer.partition(":")[0] for answer in found.values()} == {"HandleOpenedElsewhere"}


def test_a_handle_whose_loop_is_gone_says_so(database: Database) -> None:
    db = SessionsDB(database.url)
    runner = asyncio.Runner()
    runner.run(db.__aenter__())
    with pytest.raises(HandleOpenedElsewhere, match="another event loop"):
        asyncio.run(db.store.load("chat"))
    runner.run(db.__aexit__(None, None, None))
    runner.close()

    async def use() -> None:
        async with db:
            await db.store.load("chat")

    asyncio.run(use())


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
async def test_after_a_fork_every_verb_says_so_and_the_parent_goes_on(db: SessionsDB) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            asyncio.set_event_loop(None)
            for name, answer in asyncio.run(outcomes(db)).items():
                os.write(write, f"{name}: {answer}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = await asyncio.to_thread(pipe.readlines)
    await asyncio.to_thread(os.waitpid, child, 0)
    assert len(lines) == len(ELSEWHERE)
    for line in lines:
        assert re.search(rf"HandleOpenedElsewhere: .* in process {os.getpid()}, before a", line)
    await db.broker.send("chat", "still here")
    assert await db.worker(handler).run_until_idle() == 2
