"""The connection pool of an engine."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool


def checked_out(engine: AsyncEngine) -> int:
    """The number of connections that are checked out."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()
