"""What a user would pick instead, each used in the way its own documentation recommends.

Every peer works on a database of its own, with the content that ours has, and as durably: SQLite
in WAL mode with ``synchronous=FULL``, PostgreSQL as it is. Each has a pool of 20 connections, as
ours has at the most.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

POOL = 20


def async_url(url: str) -> str:
    """A database's URL with the asynchronous driver that ours uses too."""
    return url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")


def make_durable(engine: AsyncEngine) -> None:
    """Give every SQLite connection of a peer what ours has. A peer that sets some of it itself
    keeps that: the last word is the peer's."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine.sync_engine, "connect", insert=True)
    def _configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 60000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
