"""Changes of conversations by hand: a page of entries, a pop, an edit with state, and a fork.

Each is the least SQL for the same rows, in a transaction of its own. On SQLite all transactions
that wait are committed together. The text is the same for both databases.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from benchmarks.floor.sqlite import Thread
from benchmarks.peers import POOL
from devtools.databases import Database

_OF = "namespace = 'default' AND session_id = $1"
_SESSION = "namespace = 'default' AND id = $1"

ENTRIES = f"""
SELECT seq, key, role, content, payload, extra, created_at, sender, sent_at FROM messages
WHERE {_OF} ORDER BY seq DESC LIMIT 50
"""

COUNT_POPPED = f"""
UPDATE sessions SET version = version + 1, rewrites = rewrites + 1,
    message_count = message_count - 1, updated_at = {{now}}
WHERE {_SESSION}
"""
POP = f"""
DELETE FROM messages WHERE {_OF} AND seq = (SELECT max(seq) FROM messages WHERE {_OF})
RETURNING role, content, payload
"""

COUNT_APPENDED = f"""
UPDATE sessions SET version = version + 1, last_seq = last_seq + CAST($2 AS integer),
    message_count = message_count + CAST($2 AS integer), updated_at = {{now}}, last_active = {{now}}
WHERE {_SESSION}
"""
APPEND = f"""
INSERT INTO messages (namespace, session_id, seq, role, content, created_at)
SELECT 'default', id, last_seq - CAST($2 AS integer), $3, $4, {{now}} FROM sessions WHERE {_SESSION}
"""

SCOPE = """
INSERT INTO state_scopes (namespace, scope, owner, session_id, version, bytes, updated_at)
VALUES ('default', 'session', $1, $1, 1, $2, {now})
ON CONFLICT (namespace, scope, owner)
DO UPDATE SET version = state_scopes.version + 1, bytes = excluded.bytes,
    updated_at = excluded.updated_at
"""
VALUE = """
INSERT INTO state_values (namespace, scope, owner, key, value)
VALUES ('default', 'session', $1, 'step', $2)
ON CONFLICT (namespace, scope, owner, key) DO UPDATE SET value = excluded.value
"""

LOCK = f"SELECT 1 FROM sessions WHERE {_SESSION} FOR NO KEY UPDATE"
FORK = f"""
INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active, version,
                      last_seq, message_count, forked_from, forked_seq)
SELECT 'default', $2, channel, peer, {{now}}, {{now}}, {{now}}, 1, last_seq, message_count, id,
       last_seq
FROM sessions WHERE {_SESSION}
"""
MAILBOX = "INSERT INTO mailboxes (namespace, session_id) VALUES ('default', $1)"
COPY = f"""
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at, extra, key,
                      sender, sent_at)
SELECT namespace, $2, seq, role, content, payload, created_at, extra, key, sender, sent_at
FROM messages WHERE {_OF}
"""

Step = tuple[str, tuple[Any, ...]]


class ConversationsByHand:
    def __init__(self, driver: Any) -> None:
        self._driver = driver

    async def entries(self, id: str) -> Sequence[Any]:
        rows: Sequence[Any] = await self._driver.read((ENTRIES, (id,)))
        return rows

    async def append_and_pop(self, id: str, message: tuple[str, str]) -> object:
        await self._driver.write([(COUNT_APPENDED, (id, 1)), (APPEND, (id, 0, *message))])
        return await self._driver.write([(COUNT_POPPED, (id,)), (POP, (id,))])

    async def edit(self, id: str, two: Sequence[tuple[str, str]], step: str) -> object:
        return await self._driver.write(
            [
                (COUNT_APPENDED, (id, 2)),
                (APPEND, (id, 1, *two[0])),
                (APPEND, (id, 0, *two[1])),
                (SCOPE, (id, len("step") + len(step))),
                (VALUE, (id, step)),
            ]
        )

    async def fork(self, id: str, new_id: str) -> object:
        return await self._driver.write(
            [(LOCK, (id,)), (FORK, (id, new_id)), (MAILBOX, (new_id,)), (COPY, (id, new_id))]
        )


class _Postgres:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def read(self, step: Step) -> Any:
        return await self._pool.fetch(step[0], *step[1])

    async def write(self, steps: Sequence[Step]) -> Any:
        async with self._pool.acquire() as connection, connection.transaction():
            for sql, values in steps:
                rows = await connection.fetch(sql.format(now="now()"), *values)
            return rows


class _Sqlite:
    def __init__(self, reader: Thread, writer: Thread) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, step: Step) -> Any:
        return await self._reader.do(lambda connection: _run(connection, [step]))

    async def write(self, steps: Sequence[Step]) -> Any:
        # The transaction has the lock of the whole database.
        return await self._writer.do(
            lambda connection: _run(connection, [step for step in steps if step[0] is not LOCK])
        )


def _run(connection: sqlite3.Connection, steps: Sequence[Step]) -> Any:
    for sql, values in steps:
        text = sql.format(now="strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'").replace("$", ":p")
        # Python 3.12.0 to 3.12.3 warn about ?1 with a sequence.
        named = {f"p{number}": value for number, value in enumerate(values, 1)}
        rows = connection.execute(text, named).fetchall()
    return rows


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[ConversationsByHand]:
    if database.kind == "sqlite":
        path = str(database.path)
        reader, writer = Thread(path, "BEGIN"), Thread(path, "BEGIN IMMEDIATE")
        try:
            yield ConversationsByHand(_Sqlite(reader, writer))
        finally:
            await reader.close()
            await writer.close()
    else:
        async with asyncpg.create_pool(database.url, min_size=POOL, max_size=POOL) as pool:
            yield ConversationsByHand(_Postgres(pool))
