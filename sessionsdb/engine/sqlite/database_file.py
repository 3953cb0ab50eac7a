"""Detect that the file of a SQLite database was moved, deleted or replaced while it is open.

SQLite holds a file by its descriptor. After the file is moved, deleted or replaced, SQLite goes on
writing to the file that it holds: no later process will find these commits.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy.engine.interfaces import DBAPIConnection

from sessionsdb.errors import StorageError
from sessionsdb.output_file import PRIVATE

Identity = tuple[int, int]
"""The device and the inode of a file."""


class SqliteFile:
    """The identities of a database file and of its -wal and -shm when a connection was opened.

    ``immutable``: the connection sees no change of the file, so that a changed file is another one.
    """

    def __init__(self, path: str, *, immutable: bool = False) -> None:
        self.path = path
        self._content = _content(path) if immutable else None
        self._identity = _identity(path)
        self._companions = [(name, _identity(name)) for name in (f"{path}-wal", f"{path}-shm")]

    @classmethod
    def of_connection(
        cls, connection: DBAPIConnection | sqlite3.Connection, *, immutable: bool = False
    ) -> SqliteFile | None:
        """Return the file of a connection's main database, or ``None`` if it has no file."""
        cursor = connection.cursor()
        cursor.execute("PRAGMA database_list")
        [path] = [row[2] for row in cursor.fetchall() if row[1] == "main"]
        cursor.close()
        return cls(path, immutable=immutable) if path else None

    def is_current(self) -> bool:
        """Return whether the path still leads to the file that was opened (1.5 µs)."""
        return _identity(self.path) == self._identity and (
            self._content is None or _content(self.path) == self._content
        )

    def require_current(self) -> None:
        """Raise ``StorageError`` after a commit into a file that its path no longer leads to."""
        if not self.is_current():
            raise StorageError(
                f"the database file {self.path} was moved, deleted or replaced while this was "
                "written: whether the file that is there now has it is unknown; read before you "
                "repeat it"
            )

    def require_openable(self) -> None:
        """Raise ``StorageError`` if the path must not be opened again.

        If the file is gone, SQLite would create an empty one. If it was replaced and the log of the
        old file is still there, SQLite would play that log into the new database.
        """
        identity = _identity(self.path)
        if identity is None:
            raise StorageError(
                f"the database file {self.path} is gone: it was moved or deleted while it was "
                "open; put it back, or open the database anew to begin an empty one"
            )
        if identity == self._identity:
            return
        old_companions = [
            name for name, opened in self._companions if opened and _identity(name) == opened
        ]
        if old_companions:
            raise StorageError(
                f"the database file {self.path} was replaced while it was open, and "
                f"{' and '.join(Path(name).name for name in old_companions)} of the old one lie "
                "beside it still: stop whatever has it open, and remove them"
            )


def create_private(name: str, *, is_uri: bool = False) -> Path | None:
    """Create the file of a database that does not exist yet, so that only its owner can read it.

    SQLite would create it with the mode 0644. It gives the -wal and the -shm the mode of the file.
    Returns the new file. ``None`` if no file is to be made, or if it can't be made: SQLite tells
    the reason.
    """
    if is_uri and name.startswith("file:"):
        parts = urlsplit(name)
        if parse_qs(parts.query).get("mode", ["rwc"]) != ["rwc"]:
            return None
        name = unquote(parts.path)
    if name in ("", ":memory:"):
        return None
    path = os.path.realpath(name)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))
    except OSError:
        return None
    return Path(path)


def _content(path: str) -> tuple[int, int, bool] | None:
    """Return the time and size of a file, and whether it has a log. They tell a change of it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, Path(f"{path}-wal").exists())


def _identity(path: str) -> Identity | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        return (-1, -1)  # the file may exist: SQLite's own error will tell more
    return (status.st_dev, status.st_ino)
