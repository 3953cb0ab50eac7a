"""Turn the errors of SQLite into ``StorageError``, with a hint on how to solve the problem."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from sessionsdb.engine.storage_errors import (
    DataDamaged,
    UndecodableText,
    as_storage_error,
    driver_error,
)

# By SQLite's primary result codes: https://sqlite.org/rescode.html
_HINTS = {
    sqlite3.SQLITE_BUSY: "another process held the lock for longer than a write waits for it "
    "(10 s, or what ?timeout=SECONDS in the URL says); nothing was written: let it end its "
    "transaction, and repeat this",
    sqlite3.SQLITE_FULL: "nothing was written: free some space on its disk, and repeat this",
    sqlite3.SQLITE_READONLY: "the file is read-only here, and nothing was written: to write, this "
    "user needs the right to write to the file and to its folder, and a URL without mode=ro and "
    "immutable=1",
    sqlite3.SQLITE_IOERR: "the file system refused to read or to write: look for a full quota, a "
    "limit on the size of files, or a failing disk in the system's log",
    sqlite3.SQLITE_CANTOPEN: "the file or one beside it can't be opened: its folder must be there, "
    "and this user must have the right to write to both",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: stop whatever writes to it, keep it together "
    "with its -wal, and restore a backup; `sessionsdb doctor` tells what is broken",
    sqlite3.SQLITE_NOTADB: "look for a mistake in the URL; if it was a database, its beginning "
    "was overwritten: restore a backup",
}

BROKEN_CONNECTION_CODES = frozenset(
    (
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PROTOCOL),
    )
)
"""Result codes after which a connection may fail for as long as it is open.

A connection keeps the rights it was opened with, and pages it read while the file was damaged.
"""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn errors of the driver into ``StorageError``, with the original error as its cause."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = driver_error(error)
        if primary_result_code(cause) == sqlite3.SQLITE_CORRUPT:
            raise DataDamaged(f"the database failed: {cause}{error_hint(cause)}") from cause
        if _is_undecodable(cause):
            raise UndecodableText(f"the database failed: {cause}{error_hint(cause)}") from cause
        raise as_storage_error(error, error_hint(cause)) from cause


def error_hint(error: BaseException) -> str:
    """Return the text to add to a driver's message. It is empty if there is no hint."""
    code = primary_result_code(error)
    if code == sqlite3.SQLITE_ERROR and str(error).startswith("no such "):
        return "; the tables are not what this version needs, run: sessionsdb migrate"
    if _is_undecodable(error):
        return "; another program wrote a text that is not UTF-8: correct its row"
    if code not in _HINTS:
        return ""
    return f"; {_HINTS[code]}"


def _is_undecodable(error: BaseException) -> bool:
    """Return whether the driver could not decode a text. Such an error has no result code."""
    return str(error).startswith("Could not decode to UTF-8")


def primary_result_code(error: BaseException | None) -> int | None:
    """Return SQLite's primary result code, without the bits of an extended code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
