"""What a test asks an engine's pool."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool


def checked_out(engine: AsyncEngine) -> int:
    """How many of its connections are out."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()
