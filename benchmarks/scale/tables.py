"""``history``, ``append`` and ``list`` against the number of messages in the table, and the bytes
of a message on disk."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks.bench import Bench, Sample, Sampler
from benchmarks.messages import CHARACTERS, transcript
from benchmarks.results import OURS
from benchmarks.scale import sizes
from devtools.databases import Database
from sessionsdb import SessionsDB

HISTORY, APPEND, LIST = "read the last 50", "append two", "list a page of 50"
BYTES = "bytes on disk per message"

EACH = 100
"""Messages of a session that has any: 100,000 sessions have 10,000,000."""

EMPTY = 9
"""Sessions without messages for each that has some: 1,000,000 sessions in all."""

PAGE = 50
MIN_SESSIONS = 100
"""At every size there is a whole page to list."""

CALLS = 40
"""A sample is the median of 40 calls."""


async def measure(bench: Bench, database: str) -> None:
    kept = (1_000, 50_000) if bench.quick else (1_000, 100_000, 10_000_000)
    async with AsyncExitStack() as stack:
        samplers: dict[str, dict[int, Sampler]] = {HISTORY: {}, APPEND: {}, LIST: {}}
        for messages in kept:
            made = stack.enter_context(bench.new_database(database))
            empty = await _bytes(made)
            await fill(made, messages)
            grown = await _bytes(made) - empty
            if messages == kept[-1]:
                bench.record(
                    BYTES,
                    database=database,
                    side=OURS,
                    unit="bytes",
                    values=[grown / messages],
                    at={"messages": messages},
                    better="less",
                    note=f"with its share of the session's rows and all indices; {CHARACTERS}"
                    " characters of text each",
                )
            db = await stack.enter_async_context(SessionsDB(made.url))
            for what, operation in _operations(db, messages // EACH).items():
                samplers[what][messages] = _sampler(operation)
        for what, by_size in samplers.items():
            await sizes.compare(bench, what, database=database, over="messages", samplers=by_size)


def _operations(db: SessionsDB, sessions: int) -> dict[str, Callable[[], Awaitable[object]]]:
    """The calls go to ten sessions in turn, which lie far apart. So the pages that they need are in
    memory at each size, like the pages of active sessions."""
    ids = itertools.cycle(f"s{1 + n * (sessions // 10):07}" for n in range(10))
    two = transcript(2)
    return {
        HISTORY: lambda: db.broker.history(next(ids), PAGE),
        APPEND: lambda: db.store.append(next(ids), two),
        LIST: lambda: db.broker.list(limit=PAGE),
    }


def _sampler(operation: Callable[[], Awaitable[object]]) -> Sampler:
    async def sample() -> Sample:
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            await operation()
            times.append(time.perf_counter() - began)
        return Sample(statistics.median(times) * 1000)

    return sample


async def fill(database: Database, messages: int) -> None:
    """Write ``messages``, 100 a session, and nine empty sessions for each of these. Each session
    was active a second after the one before, the empty ones last."""
    statements = _statements(database.kind, messages // EACH)
    if database.kind == "sqlite":
        await asyncio.to_thread(_fill_sqlite, database, statements)
    else:
        for statement in (*statements, "VACUUM ANALYZE"):
            await database.query(statement)


def _statements(kind: str, talked: int) -> tuple[str, ...]:
    if kind == "sqlite":
        id, moment = "printf('s%07d', n)", "datetime(1704067200 + n, 'unixepoch') || '.000000'"
    else:
        id, moment = "'s' || lpad(CAST(n AS text), 7, '0')", "to_timestamp(1704067200 + n)"
    numbers = (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL"
        f" SELECT n + 1 FROM numbers WHERE n < {max(MIN_SESSIONS, talked * (1 + EMPTY))})"
    )
    kept = f"CASE WHEN n <= {talked} THEN {EACH} ELSE 0 END"
    texts = ", ".join(
        f"({seq}, '{message['role']}', '{message['content']}')"
        for seq, message in enumerate(transcript(EACH), 1)
    )
    return (
        "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active,"
        f" version, last_seq, message_count) {numbers}"
        f" SELECT 'default', {id}, 'bench', 'peer-' || n % 100, {moment}, {moment}, {moment},"
        f" 1, {kept}, {kept} FROM numbers",
        f"INSERT INTO mailboxes (namespace, session_id) {numbers}"
        f" SELECT 'default', {id} FROM numbers",
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at)"
        f" {numbers}, texts(seq, role, content) AS (VALUES {texts})"
        f" SELECT 'default', {id}, seq, role, content, {moment} FROM numbers CROSS JOIN texts"
        f" WHERE n <= {talked}",
    )


def _fill_sqlite(database: Database, statements: tuple[str, ...]) -> None:
    connection = sqlite3.connect(database.path)
    # A failed fill is thrown away, and the journal would be as long as the table.
    for setting in ("journal_mode = OFF", "synchronous = OFF"):
        connection.execute(f"PRAGMA {setting}").fetchall()
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.close()


async def _bytes(database: Database) -> int:
    if database.kind == "postgresql":
        return int(await database.value("SELECT pg_database_size(current_database())"))
    return (await asyncio.to_thread(database.path.stat)).st_size
