"""The alternatives of a user, each used in the way that its documentation recommends.

Every peer has its own database, with the same content and the same durability: SQLite in WAL mode
with ``synchronous=FULL``, PostgreSQL with its defaults. Each has a pool of 20 connections, the
maximum of ours.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

POOL = 20

PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 60000")
"""The settings of a peer's SQLite connections, as durable as ours."""


def async_url(url: str) -> str:
    """The URL of a database with the asynchronous driver that ours uses."""
    return url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")


def make_durable(engine: AsyncEngine) -> None:
    """Set the pragmas of our SQLite connections on the connections of a peer. Pragmas that the peer
    sets itself override them."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine.sync_engine, "connect", insert=True)
    def _configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
