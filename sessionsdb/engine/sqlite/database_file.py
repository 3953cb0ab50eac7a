"""The file of a SQLite database, and whether it is still the one that was opened.

SQLite holds a file by its descriptor. Once the file is moved, deleted or replaced, it goes on
writing to what it holds: commits that nobody will ever find.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy.engine.interfaces import DBAPIConnection

from sessionsdb.errors import StorageError

Identity = tuple[int, int]


class SqliteFile:
    """A database file as it was when a connection to it was opened, its companions included."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._identity = _identity(path)
        self._companions = [(name, _identity(name)) for name in (f"{path}-wal", f"{path}-shm")]

    @classmethod
    def behind(cls, connection: DBAPIConnection | sqlite3.Connection) -> SqliteFile | None:
        """The main database of a connection; ``None`` if it has no file."""
        cursor = connection.cursor()
        cursor.execute("PRAGMA database_list")
        [path] = [row[2] for row in cursor.fetchall() if row[1] == "main"]
        cursor.close()
        return cls(path) if path else None

    def in_place(self) -> bool:
        """Whether its name still leads to it (1.5 µs)."""
        return _identity(self.path) == self._identity

    def require_in_place(self) -> None:
        """After a commit: raises ``StorageError`` if it went into a file that nobody will find."""
        if not self.in_place():
            raise StorageError(
                f"the database file {self.path} was moved, deleted or replaced while this was "
                "written: whether the file that is there now has it is unknown; read before you "
                "repeat it"
            )

    def require_openable(self) -> None:
        """Before it is opened again, maybe another file of its name. Raises ``StorageError`` where
        SQLite would make an empty file, or play the old one's log into another database."""
        found = _identity(self.path)
        if found is None:
            raise StorageError(
                f"the database file {self.path} is gone: it was moved or deleted while it was "
                "open; put it back, or open the database anew to begin an empty one"
            )
        if found == self._identity:
            return
        left = [name for name, its in self._companions if its and _identity(name) == its]
        if left:
            raise StorageError(
                f"the database file {self.path} was replaced while it was open, and "
                f"{' and '.join(Path(name).name for name in left)} of the old one lie beside it "
                "still: stop whatever has it open, and remove them"
            )


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        return (-1, -1)  # there may be something: SQLite's own error will say more
    return (found.st_dev, found.st_ino)
