"""A database that is down costs a few retries with growing pauses, and no busy loop.

When it is back, all work continues by itself. The bounds hold for everything that one handle does
at once: a worker with turns to commit, the listener, waiters, and writes with lost answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import Outcome, Receipt, SessionsDB, StorageError, Turn
from tests.support import storage
from tests.support.proxy import Proxy
from tests.support.scale import SCALE
from tests.support.turns import waits_under_way
from tests.support.waiting import until
from tests.support.work import running

OUTAGE_SECONDS = 3.0 * min(SCALE, 5)
"""Shorter than a lease, so the running turns are not lost."""

MOST_TRIES_A_SECOND = 40.0
"""Connection attempts of a worker with eight turns, a listener, waiters and eight lost answers."""

MOST_CPU = 0.15
"""The share of one core during the outage."""

TURNS = 8
WAITERS = 50
BACK_SECONDS = 6.0 + 2 * OUTAGE_SECONDS
"""Seconds from the return of the database until all is done. The pauses have doubled meanwhile."""


class Busy:
    """A handle with every kind of call in progress."""

    def __init__(self, db: SessionsDB) -> None:
        self.db = db
        self.may_answer = asyncio.Event()
        self.began = 0
        self.connects = 0
        event.listen(db.engine.sync_engine, "do_connect", self._count)

    def _count(self, *_: Any) -> None:
        self.connects += 1

    async def handle(self, turn: Turn) -> str:
        self.began += 1
        await self.may_answer.wait()
        return f"echo: {turn.text}"

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[list[asyncio.Task[Outcome]]]:
        """Running turns, and many waiters for them and for the messages behind them."""
        async with running(self.db, self.handle, concurrency=TURNS, poll_interval=0.5):
            receipts: list[Receipt] = []
            for n in range(TURNS):
                await self.db.broker.register(f"s{n}", channel="test", peer="ada")
                receipts.append(await self.db.broker.send(f"s{n}", "first"))
            await until(lambda: self.began == TURNS)
            receipts += [
                await self.db.broker.send(f"s{n % TURNS}", f"m{n}") for n in range(WAITERS)
            ]
            waiting = [
                asyncio.create_task(self.db.broker.wait(receipt, timeout=60))
                for receipt in receipts
            ]
            await until(lambda: waits_under_way(self.db) == len(receipts))
            yield waiting

    def writes(self) -> list[Coroutine[Any, Any, object]]:
        return [
            self.db.broker.register(f"new{n}", channel="test", peer="ada", exist_ok=True)
            for n in range(TURNS)
        ]


@dataclass
class Figures:
    tries: float
    """Connection attempts per second of the outage."""
    cpu: float
    """The share of a core during the outage."""
    back: float
    """Seconds from its end until all was done."""
    new: int
    """Connections made after it."""


async def lived_through(
    busy: Busy, down: Callable[[], Awaitable[None]], up: Callable[[], Awaitable[None]]
) -> Figures:
    db = busy.db
    async with busy.under_way() as waiting:
        writing = [asyncio.create_task(write) for write in busy.writes()]
        await asyncio.sleep(0)  # they are at it when it goes
        await down()
        with pytest.raises(StorageError):
            await db.store.load("s0")
        busy.may_answer.set()
        connects, cpu, began = busy.connects, time.process_time(), time.monotonic()
        await asyncio.sleep(OUTAGE_SECONDS)
        lasted = time.monotonic() - began
        tries = (busy.connects - connects) / lasted
        cpu = (time.process_time() - cpu) / lasted
        assert not any(task.done() for task in waiting)

        await up()
        began = time.monotonic()
        for outcome in await asyncio.gather(*waiting):
            assert (outcome.status, outcome.attempts) == ("done", 1)
        back = time.monotonic() - began
        for answer in await asyncio.gather(*writing, return_exceptions=True):
            assert isinstance(answer, StorageError) or not isinstance(answer, BaseException)

        connects = busy.connects
        for _ in range(20):
            receipt = await db.broker.send("s0", "again")
            assert (await db.broker.wait(receipt, timeout=10)).status == "done"
        return Figures(tries, cpu, back, busy.connects - connects)


def check(figures: Figures) -> None:
    assert figures.tries < MOST_TRIES_A_SECOND
    assert figures.cpu < MOST_CPU
    assert figures.back < BACK_SECONDS
    assert figures.new <= 2, "there is peace: the connections are there, and stay"


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("how", ["nobody-listens", "hangs-up"])
async def test_a_server_that_is_away_is_asked_for_with_growing_pauses(
    database: Database, how: str
) -> None:
    proxy = Proxy(database)
    await proxy.up()

    async def down() -> None:
        await proxy.down()
        if how == "hangs-up":
            proxy.hanging_up = True
            await proxy.up()

    async def up() -> None:
        if how == "hangs-up":
            await proxy.down()
            proxy.hanging_up = False
        await proxy.up()

    try:
        async with SessionsDB(proxy.url) as db:
            check(await lived_through(Busy(db), down, up))
    finally:
        await proxy.down()


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("how", ["moved", "damaged"])
async def test_a_file_that_is_away_is_asked_for_with_growing_pauses(
    database: Database, how: str
) -> None:
    fault = {"moved": storage.moved, "damaged": storage.damaged}[how](database.path)

    async def down() -> None:
        fault.__enter__()

    async def up() -> None:
        fault.__exit__(None, None, None)

    async with SessionsDB(database.url) as db:
        check(await lived_through(Busy(db), down, up))
