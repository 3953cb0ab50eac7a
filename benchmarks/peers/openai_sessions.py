"""Sessions of the OpenAI Agents SDK: ours, its ``SQLAlchemySession``, and its ``RedisSession``.

``RedisSession`` is measured where a ``redis-server`` is installed, once as durable as a database,
and once with its default for a log. A pop follows an addition, so that there is always an item.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.adapters import LAST, READ, Opened, Store
from benchmarks.bench import Bench
from benchmarks.messages import transcript
from benchmarks.peers import POOL, async_url, make_durable, redis_server
from benchmarks.results import OURS
from benchmarks.turns import CALLERS, Turns
from benchmarks.turns import Opened as OpenedTurns
from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.adapters.openai_agents import Session

Make = Callable[[str], Any]
"""Makes the session with that id."""


class _Sessions:
    """A session of the SDK for each conversation."""

    offers = frozenset(("add", READ, "pop"))

    def __init__(self, make: Make) -> None:
        self._make = make
        self._made: dict[int, Any] = {}
        self._two: list[Any] = transcript(2)

    def _session(self, number: int) -> Any:
        if number not in self._made:
            self._made[number] = self._make(f"session-{number}")
        return self._made[number]

    async def fill(self, sessions: Sequence[int], messages: int) -> None:
        for number in sessions:
            await self._session(number).add_items(transcript(messages))

    async def add(self, session: int) -> object:
        return await self._session(session).add_items(list(self._two))

    async def read(self, session: int) -> Sequence[object]:
        items: Sequence[object] = await self._session(session).get_items(LAST)
        return items

    async def pop(self, session: int) -> object:
        await self._session(session).add_items(self._two[:1])
        return await self._session(session).pop_item()

    async def list(self) -> Sequence[object]:
        raise NotImplementedError


class _Turns:
    """A session of the SDK for each conversation. A turn reads all items, and adds two."""

    def __init__(self, make: Make) -> None:
        self._sessions = [make(f"session-{number}") for number in range(max(CALLERS))]
        self._two: list[Any] = transcript(2)

    async def fill(self, session: int, messages: int) -> object:
        await self._sessions[session].clear_session()
        return await self._sessions[session].add_items(transcript(messages))

    async def turn(self, session: int) -> object:
        await self._sessions[session].get_items()
        return await self._sessions[session].add_items(list(self._two))


def sides(bench: Bench) -> dict[str, Opened]:
    found: dict[str, Opened] = {OURS: _ours, "openai-agents": _sqlalchemy_sessions}
    if redis_server.is_installed():
        found |= {side: _redis_sessions(side) for side in redis_server.SIDES}
    else:
        bench.note(redis_server.MISSING)
    return found


@asynccontextmanager
async def _ours(database: Database) -> AsyncIterator[Store]:
    async with SessionsDB(database.url) as db:
        yield _Sessions(lambda id: Session(id, db))


@asynccontextmanager
async def _sqlalchemy_sessions(database: Database) -> AsyncIterator[Store]:
    async with _sqlalchemy(database) as make:
        yield _Sessions(make)


@asynccontextmanager
async def opened_turns(database: Database) -> AsyncIterator[Turns]:
    async with _sqlalchemy(database) as make:
        yield _Turns(make)


def _redis_sessions(side: str) -> Opened:
    @asynccontextmanager
    async def opened(_database: Database) -> AsyncIterator[Store]:
        async with _redis(side) as make:
            yield _Sessions(make)

    return opened


def redis_turns(side: str) -> OpenedTurns:
    @asynccontextmanager
    async def opened(_database: Database) -> AsyncIterator[Turns]:
        async with _redis(side) as make:
            yield _Turns(make)

    return opened


@asynccontextmanager
async def _sqlalchemy(database: Database) -> AsyncIterator[Make]:
    engine = create_async_engine(
        async_url(database.url), pool_size=POOL, max_overflow=0, pool_timeout=600
    )
    make_durable(engine)
    try:
        await SQLAlchemySession("first", engine=engine, create_tables=True).get_items()
        yield lambda id: SQLAlchemySession(id, engine=engine)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _redis(side: str) -> AsyncIterator[Make]:
    """``RedisSession`` watches its keys, looks at their types, and adds in MULTI and EXEC: five
    requests."""
    import redis.asyncio
    from agents.extensions.memory import RedisSession

    with redis_server.started(side) as url:
        client = redis.asyncio.from_url(url)
        try:
            yield lambda id: RedisSession(id, redis_client=client)
        finally:
            await client.aclose()
