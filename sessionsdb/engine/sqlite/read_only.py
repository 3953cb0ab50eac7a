"""Read a SQLite file that this process must not write to.

A file in WAL mode needs a -shm beside it, which SQLite can't make in a read-only folder or on a
read-only mount. Where no log lies beside the file, no process has it open, and SQLite can read it
as ``immutable``, without any lock. Such a connection sees no later change, so it is opened again
when the file has changed.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakSet

import aiosqlite

from sessionsdb.engine.sqlite.errors import primary_result_code

_CANNOT_READ_CODES = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

_immutable: WeakSet[aiosqlite.Connection] = WeakSet()


async def immutable_if_needed(
    connection: aiosqlite.Connection, database: str, options: dict[str, Any]
) -> aiosqlite.Connection | None:
    """Return another connection, not open yet, if only an immutable one can read the file."""
    path = file_of(database)
    if path is None or _is_writable(path) or _has_log(path):
        return None
    try:
        await (await connection.execute("SELECT count(*) FROM sqlite_master")).close()
    except sqlite3.OperationalError as error:
        if primary_result_code(error) not in _CANNOT_READ_CODES:
            raise
    else:
        return None
    uri = f"file:{quote(str(path.absolute()))}?immutable=1"
    other = aiosqlite.connect(uri, **{**options, "uri": True})
    _immutable.add(other)
    return other


def is_immutable(driver_connection: Any) -> bool:
    """Return whether a connection was opened as immutable here."""
    return driver_connection in _immutable


def file_of(database: str) -> Path | None:
    """Return the file of a connection by its name or URI, ``None`` if there is no such file."""
    if database.startswith("file:"):
        database = unquote(urlsplit(database).path)
    path = Path(database)
    return path if path.is_file() else None


def is_read_only(raw: sqlite3.Connection) -> bool:
    """Return whether SQLite refuses writes on a connection."""
    # BEGIN IMMEDIATE begins a read there. So this writes a number that is there already.
    version = raw.execute("PRAGMA user_version").fetchone()[0]
    try:
        raw.execute(f"PRAGMA user_version = {version}")
    except sqlite3.OperationalError as error:
        return primary_result_code(error) == sqlite3.SQLITE_READONLY
    return False


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK)


def _has_log(path: Path) -> bool:
    log = Path(f"{path}-wal")
    return log.exists() and log.stat().st_size > 0
