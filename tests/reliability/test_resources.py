"""A day of turns leaves bounded memory, threads, files, connections and dead rows.

The bounds are here and in docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database, PostgresServer
from sessionsdb import Backoff, Receipt, SessionsDB, SpawnRequest, Turn, UnknownSession
from sessionsdb.database import open_database_of
from sessionsdb.engine.postgresql.connection_cache import CACHED_CONNECTIONS
from sessionsdb.engine.sqlite.engine import WAL_SIZE_LIMIT_BYTES
from tests.support import soundness
from tests.support.footprint import Footprint
from tests.support.scale import SCALE
from tests.support.waiting import until
from tests.support.work import running

ROUNDS = 48 * SCALE
"""The rounds of work. A round is half an hour, so all are a day."""

SESSIONS = 8
WARM_UP = 16

TRACED_BYTES = 50_000
"""The most that Python objects may grow in one half of the rounds after the warm-up. A leak grows
in both halves. A statement that is first needed late, and compiled then, grows in one."""

CONNECTION_BYTES = 150_000
"""The bytes of a PostgreSQL connection that is first used after the warm-up: its statements."""

RESIDENT_BYTES = 16 * 1024 * 1024
"""The same for the memory of the process, with the reserve of the allocator."""

LOG_SHARE = 0.5
"""The largest log, as a share of its size limit."""

CONNECTIONS = 20
"""The size and the overflow of a pool, with the connection of the listener."""

DEAD_ROWS = 100
DEAD_SHARE = 0.3
"""The most dead rows that autovacuum may leave in a table: a number and a share of the live rows.
The thresholds are the defaults, 50 and 0.2. It runs every second here, since the day takes seconds.
"""

TABLE_BYTES = 1024 * 1024
"""The most bytes of a table with a few live rows, updated at every turn."""

HOT_SHARE = 0.9
"""The least share of the inbox's updates that touch no index."""

OPENINGS = {"sqlite": 1_000 * SCALE, "postgresql": 300 * SCALE}

WARM_OPENINGS = 150
"""SQLAlchemy caches data of the last 128 databases."""

OBJECTS = 200
"""The most additional objects after hundreds of openings."""


@pytest.fixture
def traced(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.CRITICAL, "sessionsdb")  # the logs that pytest keeps are not counted
    tracemalloc.start()
    yield
    tracemalloc.stop()


@dataclass
class VirtualClock:
    time: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class Day:
    """Work of every kind, also with failures, in equal rounds."""

    def __init__(self, db: SessionsDB, forward: Callable[[float], object]) -> None:
        self.db = db
        self.forward = forward
        self.turns = 0
        self.number = 0

    async def handle(self, turn: Turn) -> str:
        self.turns += 1
        if turn.text == "fail" and turn.attempt == 1:
            raise ValueError("as it happens " * 20)
        await turn.history(5)
        if turn.text.startswith("tell "):
            turn.send(turn.text.removeprefix("tell "), "told")
        return f"echo: {turn.text}"

    async def begin(self) -> None:
        for n in range(SESSIONS):
            await self.db.broker.register(f"s{n}", channel="test", peer="ada")

    async def round(self) -> None:
        self.number += 1
        await asyncio.gather(*(self.session(n) for n in range(0, SESSIONS, 2)))
        self.forward(1_800.0)

    async def session(self, n: int) -> None:
        id, log = f"s{n}", f"log{n}"
        broker, store = self.db.broker, self.db.store
        receipts = [
            await broker.send(id, "hello", idempotency_key=f"k{self.number}"),
            await broker.send(id, f"tell s{n + 1}"),
        ]
        assert (await broker.wait(receipts[1], timeout=0)).status != "cancelled"
        await cancelled(broker.wait(receipts[1], timeout=60))
        await cancelled(store.append(log, [{"role": "user", "content": "maybe"}]))
        if (self.number + n) % 8 == 0:
            receipts.append(await broker.send(id, "fail"))
            child = await broker.spawn(id, SpawnRequest(prompt="work"))
            await self.done([Receipt(session_id=child.id, position=1)])
            await store.delete(child.id)
        await self.done(receipts)
        # The stored data stay the same from round to round.
        await store.save(log, [{"role": "user", "content": f"{self.number}"}] * 10)
        with contextlib.suppress(UnknownSession):
            await broker.send("nobody", "hello")

    async def done(self, receipts: list[Receipt]) -> None:
        for receipt in receipts:
            while (await self.db.broker.wait(receipt, timeout=0.1)).status != "done":
                self.forward(1.0)  # it waits for its second attempt


async def cancelled(call: Coroutine[Any, Any, object]) -> None:
    """A caller that has begun a call, and is cancelled."""
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))


async def grown(day: Day) -> list[Footprint]:
    """The footprint of a day's work once it is warm, in the middle of the rest, and at the end."""
    retry = Backoff(first=0.02, jitter=0)
    async with running(day.db, day.handle, poll_interval=0.05, retry=retry):
        await day.begin()
        for _ in range(WARM_UP):
            await day.round()
        footprints = [Footprint.now()]
        for _ in range(2):
            for _ in range((ROUNDS - WARM_UP) // 2):
                await day.round()
            footprints.append(Footprint.now())
        return footprints


def check(*footprints: Footprint, late_connections: int = 0) -> None:
    warm, *_, end = footprints
    assert end.threads <= warm.threads
    assert end.files <= warm.files + 1 + late_connections
    assert end.tasks <= warm.tasks + 2  # work that is just ending
    growth = min(after.traced - before.traced for before, after in pairwise(footprints))
    assert growth < TRACED_BYTES + late_connections * CONNECTION_BYTES
    assert end.resident - warm.resident < RESIDENT_BYTES


@pytest.mark.usefixtures("traced")
@pytest.mark.timeout(300 * SCALE)
@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_day_of_turns_on_sqlite_leaves_nothing_behind(database: Database) -> None:
    clock = VirtualClock()
    largest = 0

    def forward(seconds: float) -> None:
        nonlocal largest
        clock.forward(seconds)
        largest = max(largest, Path(f"{database.path}-wal").stat().st_size)

    async with SessionsDB(database.url, clock=clock) as db:
        day = Day(db, forward)
        check(*await grown(day))
        assert largest <= WAL_SIZE_LIMIT_BYTES * LOG_SHARE
    assert clock.time >= datetime(2026, 1, 2, tzinfo=UTC)
    assert day.turns >= ROUNDS * SESSIONS
    assert soundness.integrity(database.path) == []


@pytest.mark.usefixtures("traced")
@pytest.mark.timeout(300 * SCALE)
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_day_of_turns_on_postgresql_leaves_nothing_behind(
    database: Database, vigilant: PostgresServer
) -> None:
    async with SessionsDB(database.url) as db:
        check(*await grown(Day(db, lambda _seconds: None)), late_connections=CACHED_CONNECTIONS - 1)
        assert int(await database.value(_CONNECTIONS)) <= CONNECTIONS
        await until(partial(vacuumed, database), within=60)
        for table in ("mailboxes", "sessions"):
            size = await database.value(f"SELECT pg_relation_size('{table}')")
            assert size < TABLE_BYTES, table
        [(updates, hot)] = await database.query(_UPDATES)
        assert hot >= updates * HOT_SHARE
    assert int(await database.value(_CONNECTIONS)) == 0


async def vacuumed(database: Database) -> bool:
    """Whether the dead rows are within the bound."""
    tables = await database.query(_DEAD_ROWS)
    assert {"mailboxes", "sessions", "inbox", "messages"} <= {name for name, _, _ in tables}
    return all(dead <= DEAD_ROWS + DEAD_SHARE * live for _, live, dead in tables)


_CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE application_name = 'sessionsdb' AND datname = current_database()
"""
_DEAD_ROWS = "SELECT relname, n_live_tup, n_dead_tup FROM pg_stat_user_tables"
_UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'inbox'"


@pytest.fixture
def vigilant(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """Let autovacuum run every second and not every minute."""
    postgres_server.sql("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    postgres_server.sql("SELECT pg_reload_conf()")
    yield postgres_server
    postgres_server.sql("ALTER SYSTEM RESET autovacuum_naptime")
    postgres_server.sql("SELECT pg_reload_conf()")


@pytest.mark.timeout(300 * SCALE)
async def test_a_handle_opened_and_closed_a_thousand_times_leaks_nothing(
    database: Database,
) -> None:
    async def opened() -> None:
        async with SessionsDB(database.url) as db:
            await db.store.version("none")

    for _ in range(WARM_OPENINGS):
        await opened()
    warm = Footprint.now()
    for _ in range(OPENINGS[database.kind] - WARM_OPENINGS):
        await opened()
    # The thread of the last connection answers before it ends.
    await until(lambda: threading.active_count() <= warm.threads)
    end = Footprint.now()
    check(warm, end)
    assert end.objects - warm.objects < OBJECTS


async def test_waiters_that_give_up_and_cancelled_callers_leave_nothing_waiting(
    db: SessionsDB,
) -> None:
    await db.broker.register("chat", channel="test", peer="ada")
    receipt = await db.broker.send("chat", "nobody answers")
    for _ in range(2):
        before = Footprint.now()
        await asyncio.gather(*(db.broker.wait(receipt, timeout=0.05) for _ in range(200)))
        for _ in range(200):
            await cancelled(db.broker.wait(receipt, timeout=60))
            await cancelled(db.store.load("chat"))
            await cancelled(db.broker.send("chat", "maybe"))
        waiters = open_database_of(db).outcome_waiter.waiters
        assert (waiters.by_message, waiters.by_digest) == ({}, {})
        await until(lambda: len(asyncio.all_tasks()) <= 3)
    after = Footprint.now()
    assert after.files <= before.files
    assert after.threads <= before.threads
