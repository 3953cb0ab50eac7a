"""The database under test, as the processes of a soak open it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sessionsdb import Limits, SessionsDB, StorageError
from soak.plan import Plan


@contextlib.asynccontextmanager
async def opened(url: str, plan: Plan) -> AsyncIterator[SessionsDB]:
    """An open handle. Waits for a database that is down, like a service that is restarted until it
    runs."""
    limits = Limits(pending=plan.pending, children=plan.children)
    async with contextlib.AsyncExitStack() as stack:
        while True:
            try:
                db = await stack.enter_async_context(SessionsDB(url, migrate=False, limits=limits))
                break
            except StorageError:
                await asyncio.sleep(0.2)
        yield db
