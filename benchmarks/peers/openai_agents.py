"""openai-agents: a ``SQLAlchemySession`` for each conversation, all on one engine.

It has no list of sessions and no save: a transcript is replaced by ``clear_session`` and
``add_items``, which are two transactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.cases import APPEND, HISTORY, LOAD, PAGE, SAVE
from benchmarks.filling import Size, chats_and_books
from benchmarks.peers import POOL, async_url, make_durable
from devtools.databases import Database


class OpenAIAgents:
    offers = frozenset((APPEND, HISTORY, LOAD, SAVE))

    def __init__(self, engine: AsyncEngine, size: Size) -> None:
        self._sessions = [SQLAlchemySession(id, engine=engine) for id in size.ids()[: size.kept]]

    def form(self, message: dict[str, Any]) -> Any:
        return message

    async def append(self, session: int, messages: Sequence[Any]) -> object:
        return await self._sessions[session].add_items(list(messages))

    async def history(self, session: int) -> object:
        return await self._sessions[session].get_items(PAGE)

    async def load(self, session: int) -> Sequence[object]:
        return await self._sessions[session].get_items()

    async def save(self, session: int, messages: Sequence[Any]) -> object:
        await self._sessions[session].clear_session()
        return await self._sessions[session].add_items(list(messages))

    async def list(self) -> Sequence[object]:
        raise NotImplementedError


@asynccontextmanager
async def opened(database: Database, size: Size) -> Any:
    engine = create_async_engine(
        async_url(database.url), pool_size=POOL, max_overflow=0, pool_timeout=600
    )
    make_durable(engine)
    try:
        await SQLAlchemySession("first", engine=engine, create_tables=True).get_items()
        await database.query(
            "INSERT INTO agent_sessions (session_id)"
            f" {chats_and_books(database.kind, size)}"
            " SELECT DISTINCT session FROM messages"
        )
        data = (
            "json_object('role', role, 'content', content)"
            if database.kind == "sqlite"
            else "CAST(json_build_object('role', role, 'content', content) AS text)"
        )
        await database.query(
            "INSERT INTO agent_messages (session_id, message_data)"
            f" {chats_and_books(database.kind, size)}"
            f" SELECT session, {data} FROM messages ORDER BY session, seq"
        )
        await database.query("ANALYZE")
        yield OpenAIAgents(engine, size)
    finally:
        await engine.dispose()
