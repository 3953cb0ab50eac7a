"""A server of ``sessionsdb serve`` in the test's own event loop, and a client of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2

from sessionsdb import SessionsDB
from sessionsdb.web import serve

API = "/api/v1"


@asynccontextmanager
async def serving(db: SessionsDB, **options: Any) -> AsyncIterator[str]:
    """Serve on a free port of the loopback address, and yield the URL."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(db, port=0, ready=ready.set_result, **options))
    try:
        await asyncio.wait([ready, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield ready.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def client_of(db: SessionsDB, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client whose paths begin behind ``API``."""
    async with (
        serving(db, **options) as url,
        httpx2.AsyncClient(base_url=url + API, timeout=60) as client,
    ):
        yield client


class Sent(NamedTuple):
    """One server-sent event."""

    id: str | None
    type: str
    data: Any


async def events_of(response: httpx2.Response) -> AsyncIterator[Sent | str]:
    """Yield the events, and the text of comments."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield line[1:].strip()
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Sent(fields.get("id"), fields["event"], json.loads(fields["data"]))
            fields = {}
