"""Sessions of the OpenAI Agents SDK: ours, its ``SQLAlchemySession``, and its ``RedisSession``.

``RedisSession`` is measured where a ``redis-server`` is installed. It syncs its log at each write,
as a database does at each commit. A pop follows an addition, so that there is always an item.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.adapters import LAST, READ, Opened, Store
from benchmarks.messages import transcript
from benchmarks.peers import POOL, async_url, make_durable
from benchmarks.results import OURS
from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.adapters.openai_agents import Session

REDIS = "redis"


class _Sessions:
    """A session of the SDK for each conversation."""

    offers = frozenset(("add", READ, "pop"))

    def __init__(self, make: Callable[[str], Any]) -> None:
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


def sides() -> dict[str, Opened]:
    found: dict[str, Opened] = {OURS: _ours, "openai-agents": _sqlalchemy}
    if shutil.which("redis-server") and importlib.util.find_spec("redis"):
        found[REDIS] = _redis
    return found


@asynccontextmanager
async def _ours(database: Database) -> AsyncIterator[Store]:
    async with SessionsDB(database.url) as db:
        yield _Sessions(lambda id: Session(id, db))


@asynccontextmanager
async def _sqlalchemy(database: Database) -> AsyncIterator[Store]:
    engine = create_async_engine(
        async_url(database.url), pool_size=POOL, max_overflow=0, pool_timeout=600
    )
    make_durable(engine)
    try:
        await SQLAlchemySession("first", engine=engine, create_tables=True).get_items()
        yield _Sessions(lambda id: SQLAlchemySession(id, engine=engine))
    finally:
        await engine.dispose()


@contextmanager
def _redis_server() -> Iterator[str]:
    """A server on a Unix socket. Yields its URL."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "redis.sock")
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        durable = ["--appendonly", "yes", "--appendfsync", "always"]
        server = subprocess.Popen(["redis-server", *options, *durable], stdout=subprocess.DEVNULL)
        try:
            while not socket.exists() and server.poll() is None:
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait()


@asynccontextmanager
async def _redis(_database: Database) -> AsyncIterator[Store]:
    import redis.asyncio
    from agents.extensions.memory import RedisSession

    with _redis_server() as url:
        client = redis.asyncio.from_url(url)
        yield _Sessions(lambda id: RedisSession(id, redis_client=client))
        await client.aclose()
