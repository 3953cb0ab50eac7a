"""Wait, over the bare drivers, until no work is unfinished.

Messages, leases, open questions and schedules count.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time

import asyncpg

_LEFT = """
    SELECT (SELECT count(*) FROM inbox WHERE finished_at IS NULL)
         + (SELECT count(*) FROM mailboxes WHERE owner IS NOT NULL)
         + (SELECT count(*) FROM questions WHERE closed_at IS NULL)
         + (SELECT count(*) FROM schedules)
"""

LOOK_SECONDS = 0.2


async def wait_until_drained(url: str, within: float) -> float | None:
    """Return the seconds until the database was drained. ``None`` if not within the bound."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < within:
        with contextlib.suppress(sqlite3.OperationalError, asyncpg.PostgresError, OSError):
            if await _left(url) == 0:
                return passed
        await asyncio.sleep(LOOK_SECONDS)
    return None


async def _left(url: str) -> int:
    if url.startswith("sqlite"):
        return await asyncio.to_thread(_left_in_file, url.removeprefix("sqlite:///"))
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return int(await connection.fetchval(_LEFT))
    finally:
        await connection.close()


def _left_in_file(path: str) -> int:
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
        return int(connection.execute(_LEFT).fetchone()[0])
