"""Fields for bad input: a new namespace for each example, with bystanders in it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.reliability import bystanders
from tests.reliability.bystanders import Watcher

IDS = ("chat", "child", "ended", "nobody")
"""The sessions of a field. The last does not exist."""

_numbers = itertools.count(1)


class Field:
    """A database with bystanders."""

    def __init__(self, db: SessionsDB, watcher: Watcher) -> None:
        self._db = db
        self._watcher = watcher

    async def prepared(self) -> SessionsDB:
        """A handle on a new namespace with sessions for the example, and bystanders."""
        db = self._db.in_namespace(f"{bystanders.FIELDS}{next(_numbers)}")
        await bystanders.settle(db)
        await db.broker.register("chat", channel="cli", peer="ada", tools=["search", "read"])
        await db.broker.send("chat", "waits", idempotency_key="k")
        await db.store.append("ended", [{"role": "user", "content": "hello"}])
        await db.broker.register("child", channel="cli", peer="", parent="chat")
        await db.broker.end("ended")
        return db

    async def others(self, db: SessionsDB, *, also_here: bool = True) -> bystanders.Rows:
        """All rows except the rows of the sessions for the example."""
        return await self._watcher.others(db.namespace, also_here=also_here)


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Field]:
    # No test here cuts the power, so no write has to reach the disk.
    async with (
        SessionsDB(database.url, durability="normal") as db,
        Watcher(database) as watcher,
    ):
        await bystanders.settle(db.in_namespace(bystanders.ELSEWHERE))
        yield Field(db, watcher)
