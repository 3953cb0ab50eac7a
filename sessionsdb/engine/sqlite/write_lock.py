"""Wait for the write lock of a SQLite file, which one connection of all processes holds.

SQLite's own wait sleeps for up to 100 ms between two attempts. Beside a process that commits
without a pause the lock is free for moments only, and most attempts fail. There a lone append takes
430 ms in 1 of 100. With an attempt each millisecond it takes 12 ms. The group ``processes`` of the
benchmarks measures both.
"""

from __future__ import annotations

import random
import sqlite3
import time
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.util import await_only

from sessionsdb.engine.sqlite.errors import primary_result_code
from sessionsdb.private_apis import raise_as_sqlalchemy, run_on_thread, sqlite3_connection

BEGIN_IMMEDIATE = "BEGIN IMMEDIATE"

_FIRST_SLEEP_SECONDS = 0.001

_LONGEST_SLEEP_SECONDS = 0.005
"""The sleep after a wait of 100 ms: then the other transaction is a long one."""


def begin_immediate_on(connection: Connection, busy_seconds: float) -> None:
    """Begin a transaction that writes on a connection of an ``AsyncEngine``, inside ``run_sync``.

    It waits as ``begin_immediate`` does. Raises the error that SQLAlchemy makes of the driver's.
    """
    driver: Any = connection.connection.driver_connection

    def begin() -> None:
        raw = sqlite3_connection(driver)
        set_busy_seconds(raw, 0)
        try:
            begin_immediate(raw, busy_seconds)
        finally:
            set_busy_seconds(raw, busy_seconds)

    try:
        await_only(run_on_thread(driver, begin))
    except sqlite3.Error as error:
        raise_as_sqlalchemy(connection, BEGIN_IMMEDIATE, error)


def set_busy_seconds(raw: sqlite3.Connection, seconds: float) -> None:
    """Set how long SQLite itself waits for a lock. With 0 a statement fails at once."""
    raw.execute(f"PRAGMA busy_timeout = {int(seconds * 1_000)}").close()


def begin_immediate(raw: sqlite3.Connection, busy_seconds: float) -> None:
    """Begin a transaction that writes. Wait for the lock up to ``busy_seconds``.

    SQLite's own wait must be set to 0 on this connection. Raises ``sqlite3.OperationalError`` with
    the code of ``SQLITE_BUSY`` if another transaction has the lock for longer.
    """
    began = time.monotonic()
    while True:
        try:
            raw.execute(BEGIN_IMMEDIATE)
        except sqlite3.OperationalError as error:
            waited = time.monotonic() - began
            is_locked = primary_result_code(error) == sqlite3.SQLITE_BUSY
            if not is_locked or waited >= busy_seconds:
                raise
        else:
            return
        sleep = min(max(_FIRST_SLEEP_SECONDS, waited / 20), _LONGEST_SLEEP_SECONDS)
        # Two processes that wait don't ask in step.
        time.sleep(min(sleep * random.uniform(0.5, 1.5), busy_seconds - waited))
