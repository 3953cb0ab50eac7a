"""The faults of SQLite: long transactions of both kinds, and a WAL that is filled and truncated."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from sessionsdb import SessionsDB
from soak.plan import Plan
from soak.storage import BALLAST_BYTES, BALLAST_ROWS, Act, held

TRUNCATE_SECONDS = 3.0


class SqliteStorage:
    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "soak.db"
        self.url = self.direct_url = f"sqlite:///{self.path}"

    async def prepare(self) -> None:
        async with SessionsDB(self.url, migrate=True):
            pass
        with contextlib.closing(self._connect()) as connection:
            connection.execute("CREATE TABLE ballast (load BLOB)")
            connection.execute("CREATE TABLE orders (token TEXT)")

    def faults(self, plan: Plan) -> Mapping[str, Act]:
        return {
            "hold a read transaction": self._aside(self._hold, "BEGIN", plan),
            "hold the write lock": self._aside(self._hold, "BEGIN IMMEDIATE", plan),
            "fill and truncate the WAL": self._aside(self._fill_wal),
        }

    def served(self) -> AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def integrity(self) -> list[str]:
        return await asyncio.to_thread(self.integrity_now)

    @staticmethod
    def _aside(act: Callable[..., dict[str, Any]], *arguments: Any) -> Act:
        async def run(chance: random.Random) -> dict[str, Any]:
            return await asyncio.to_thread(partial(act, chance, *arguments))

        return run

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30, isolation_level=None)

    def _hold(self, chance: random.Random, begin: str, plan: Plan) -> dict[str, Any]:
        seconds = held(chance, plan)
        with contextlib.closing(self._connect()) as connection:
            connection.execute(begin)
            connection.execute("SELECT count(*) FROM inbox").fetchone()
            time.sleep(seconds)
            connection.execute("ROLLBACK")
        return {"seconds": seconds}

    def _fill_wal(self, chance: random.Random) -> dict[str, Any]:
        """Write large rows between the other writes, then truncate the WAL."""
        wal = Path(f"{self.path}-wal")
        with contextlib.closing(self._connect()) as connection:
            for _ in range(BALLAST_ROWS):
                connection.execute("INSERT INTO ballast VALUES (zeroblob(?))", (BALLAST_BYTES,))
            filled = wal.stat().st_size
            connection.execute("DELETE FROM ballast")
            connection.execute("PRAGMA busy_timeout = 500")
            deadline = time.monotonic() + TRUNCATE_SECONDS
            tries, truncated = 0, False
            while not truncated and time.monotonic() < deadline:
                tries += 1
                busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                truncated = busy == 0
        return {"filled": filled, "truncated": truncated, "tries": tries}

    def integrity_now(self) -> list[str]:
        with contextlib.closing(self._connect()) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            broken = [str(row) for row in connection.execute("PRAGMA foreign_key_check")]
        return [line for line in found if line != "ok"] + broken
