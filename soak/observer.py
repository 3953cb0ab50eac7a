"""Read the lease of a handler over the bare driver, past the package."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any, Protocol

import asyncpg

COLUMNS = ("owner", "epoch", "lease_until", "claimed_at", "attempts")


class Observer(Protocol):
    async def look(self, session: str, position: int) -> dict[str, Any]:
        """The lease on a session and the time of the claim, read at one moment, by the clock that
        decides about leases. Empty without an answer of the database."""


class SqliteObserver:
    _LOOK = """
        SELECT m.owner, m.epoch, m.lease_until, i.claimed_at, i.attempts
        FROM mailboxes AS m JOIN inbox AS i
            ON i.namespace = m.namespace AND i.session_id = m.session_id AND i.position = ?
        WHERE m.namespace = 'default' AND m.session_id = ?
    """

    def __init__(self, url: str) -> None:
        path = url.removeprefix("sqlite:///")
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)

    async def look(self, session: str, position: int) -> dict[str, Any]:
        with contextlib.suppress(sqlite3.Error):
            row = self._connection.execute(self._LOOK, (position, session)).fetchone()
            if row is not None:
                return dict(zip(COLUMNS, row, strict=True))
        return {}


class PostgresObserver:
    _LOOK = """
        SELECT m.owner, m.epoch,
               to_char(m.lease_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
               to_char(i.claimed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
               i.attempts
        FROM mailboxes AS m JOIN inbox AS i
            ON i.namespace = m.namespace AND i.session_id = m.session_id AND i.position = $1
        WHERE m.namespace = 'default' AND m.session_id = $2
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool | None = None

    async def look(self, session: str, position: int) -> dict[str, Any]:
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url, min_size=0, max_size=2, timeout=2, command_timeout=2
                )
            row = await self._pool.fetchrow(self._LOOK, position, session, timeout=2)
            if row is not None:
                return dict(zip(COLUMNS, tuple(row), strict=True))
        return {}


def observer(url: str) -> Observer:
    return SqliteObserver(url) if url.startswith("sqlite") else PostgresObserver(url)
