"""What to do about a failure of the database: a sentence for whoever reads the error."""

from __future__ import annotations

import sqlite3

# By SQLite's primary result codes: https://sqlite.org/rescode.html
_HINTS = {
    sqlite3.SQLITE_BUSY: "another process held the lock for longer than a write waits for it "
    "(10 s, or what ?timeout=SECONDS in the URL says); nothing was written: let it end its "
    "transaction, and repeat this",
    sqlite3.SQLITE_FULL: "nothing was written: free some space on its disk, and repeat this",
    sqlite3.SQLITE_READONLY: "nothing was written: give this user the right to write to the file "
    "and to its folder, and leave mode=ro out of the URL",
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
"""After these a connection may fail for ever: it keeps the rights it was opened with, and pages
it read while the file was damaged."""


def primary_result_code(error: BaseException | None) -> int | None:
    """SQLite's primary result code, without what an extended code adds to it."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def error_hint(error: BaseException) -> str:
    """What to do about it, to be put behind the error's own words; empty if there is no advice."""
    code = primary_result_code(error)
    if code == sqlite3.SQLITE_ERROR and str(error).startswith("no such "):
        return "; the tables are not what this version needs, run: sessionsdb migrate"
    if code not in _HINTS:
        return ""
    return f"; {_HINTS[code]}"
