"""Run workers in tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from devtools.databases import Database
from sessionsdb import Backoff, Handler, SessionsDB, Worker
from tests.support.waiting import until

SOON = Backoff(first=0.01, factor=1.0, jitter=0.0)


@asynccontextmanager
async def running(db: SessionsDB, handler: Handler, **options: Any) -> AsyncIterator[Worker]:
    """Run a worker during the block."""
    worker = db.worker(handler, **options)
    task = asyncio.create_task(worker.run())
    await until(lambda: worker.id)
    try:
        yield worker
    finally:
        await worker.stop(grace=0)
        await task


async def expire_leases(database: Database) -> None:
    """Let every lease expire, as after the death of its worker."""
    await database.query(
        "UPDATE mailboxes SET lease_until = '2000-01-01 00:00:00.000000'"
        " WHERE lease_until IS NOT NULL"
    )


def user_and_reply(text: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
