"""The database under test, as the processes of a soak open it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sessionsdb import Limits, SessionsDB, StorageError
from soak.plan import Plan


@contextlib.asynccontextmanager
async def opened(url: str, plan: Plan) -> AsyncIterator[SessionsDB]:
    """A handle that is open; a database that is away is waited for, as by a service that is
    started again until it runs."""
    limits = Limits(pending=plan.pending, children=plan.children)
    async with contextlib.AsyncExitStack() as stack:
        while True:
            try:
                db = await stack.enter_async_context(SessionsDB(url, migrate=False, limits=limits))
                break
            except StorageError:
                await asyncio.sleep(0.2)
        yield db
