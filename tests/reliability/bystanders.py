"""Sessions outside of a test, whose rows must never change."""

from __future__ import annotations

import sqlite3
from typing import Any

import asyncpg

from devtools.databases import Database
from sessionsdb import SessionsDB, SpawnRequest
from tests.support.turns import answer_next, bury_next

PREFIX = "bystander"
"""The prefix of the ids of bystanders in the namespace of a test."""

FIELDS = "field-"
"""The prefix of the namespaces of tests."""

ELSEWHERE = "elsewhere"
"""The namespace of bystanders alone."""

_TABLES = {
    "sessions": ("id", "namespace, id"),
    "mailboxes": ("session_id", "namespace, session_id"),
    "inbox": ("session_id", "namespace, session_id, position"),
    "messages": ("session_id", "namespace, session_id, seq"),
    "waits": ("waiter_id", "namespace, waiter_id, wait_id"),
}

Rows = dict[str, list[tuple[Any, ...]]]


async def settle(db: SessionsDB) -> None:
    """Create bystanders in the namespace of the handle: a session with every kind of data, and its
    child."""
    id = PREFIX
    await db.broker.register(
        id, channel="cli", peer="ada", model="m", system="s", tools=["a"], metadata={"k": [1]}
    )
    await db.store.append(id, [{"role": "user", "content": "hello"}])
    await db.broker.send(id, "answered")
    await answer_next(db, "the answer")
    await db.broker.send(id, "dead")
    await bury_next(db)
    await db.broker.send(id, "pending", idempotency_key="k")
    child = await db.broker.spawn(id, SpawnRequest(prompt="go"), idempotency_key="k")
    assert child.id  # named by the package: its rows are found by their parent


class Watcher:
    """Reads rows through a connection that stays open."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sqlite: sqlite3.Connection | None = None
        self._postgres: asyncpg.Connection | None = None

    async def __aenter__(self) -> Watcher:
        if self._database.kind == "sqlite":
            self._sqlite = sqlite3.connect(self._database.path, isolation_level=None, timeout=30)
        else:
            self._postgres = await self._database.connect_to_postgres()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sqlite is not None:
            self._sqlite.close()
        if self._postgres is not None:
            await self._postgres.close()

    async def others(self, namespace: str, *, also_here: bool = True) -> Rows:
        """Every row outside of the fields, and the rows of all bystanders in fields. Without
        ``also_here`` the bystanders in ``namespace`` are left out.

        Other rows of fields are left out, because a cancelled call may still finish in a field that
        the test has left.
        """
        here = "" if also_here else f" AND namespace <> '{namespace}'"
        found: Rows = {}
        for table, (id, order) in _TABLES.items():
            found[table] = await self._rows(
                f"SELECT * FROM {table} WHERE (namespace NOT LIKE '{FIELDS}%'"
                f" OR {id} LIKE '{PREFIX}%' OR {id} IN"
                f" (SELECT id FROM sessions WHERE parent_id LIKE '{PREFIX}%')){here}"
                f" ORDER BY {order}"
            )
        return found

    async def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        if self._sqlite is not None:
            return self._sqlite.execute(sql).fetchall()
        assert self._postgres is not None
        return [tuple(row) for row in await self._postgres.fetch(sql)]
