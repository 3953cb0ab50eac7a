"""langgraph: the transcript as the channel ``messages`` of a checkpoint.

A turn is ``aget_tuple`` and ``aput`` of the next checkpoint. A graph writes more: a checkpoint for
its input and for each step, and the writes of each node. Each checkpoint has the whole list of
messages, and the ones before it stay. On SQLite it is in the checkpoint's row. On PostgreSQL the
list is a row of its own, and both rows are one transaction.

A saver serves one call at a time. On PostgreSQL there is a saver for each connection of the pool,
so that 20 calls run at once. On SQLite there is one, as the database has one writer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.messages import transcript
from benchmarks.peers import POOL, PRAGMAS
from benchmarks.turns import Turns
from devtools.databases import Database

CHANNEL = "messages"


class LangGraph:
    def __init__(self, savers: Sequence[BaseCheckpointSaver[Any]]) -> None:
        self._savers = savers
        self._two = transcript(2)

    async def fill(self, session: int, messages: int) -> object:
        await self._saver(session).adelete_thread(_thread(session))
        return await self._put(session, _config(session), transcript(messages), None)

    async def turn(self, session: int) -> object:
        found = await self._saver(session).aget_tuple(_config(session))
        assert found is not None
        messages = found.checkpoint["channel_values"][CHANNEL]
        version = found.checkpoint["channel_versions"][CHANNEL]
        return await self._put(session, found.config, [*messages, *self._two], version)

    async def _put(self, session: int, before: Any, messages: list[Any], version: Any) -> object:
        saver = self._saver(session)
        versions = {CHANNEL: saver.get_next_version(version, None)}
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {CHANNEL: messages}
        checkpoint["channel_versions"] = versions
        return await saver.aput(before, checkpoint, {"source": "loop", "step": 1}, versions)

    def _saver(self, session: int) -> BaseCheckpointSaver[Any]:
        return self._savers[session % len(self._savers)]


def _thread(session: int) -> str:
    return f"session-{session}"


def _config(session: int) -> Any:
    return {"configurable": {"thread_id": _thread(session), "checkpoint_ns": ""}}


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Turns]:
    if database.kind == "sqlite":
        async with aiosqlite.connect(database.path) as connection:
            for pragma in PRAGMAS:
                await connection.execute(f"PRAGMA {pragma}")
            sqlite_saver = AsyncSqliteSaver(connection)
            await sqlite_saver.setup()
            yield LangGraph([sqlite_saver])
        return
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool[Any](
        database.url, min_size=POOL, max_size=POOL, kwargs=settings, open=False
    ) as pool:
        savers = [AsyncPostgresSaver(pool) for _ in range(POOL)]
        await savers[0].setup()
        yield LangGraph(savers)
