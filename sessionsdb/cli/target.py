"""The database that a command works on, as the options name it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.engine import urls


@dataclass(frozen=True)
class Target:
    """A database that is not open yet, and the namespace in it."""

    url: str
    namespace: str
    transaction_pooler: bool = False
    read_url: str | None = None

    @property
    def kind(self) -> str:
        """``sqlite`` or ``postgresql``, read from the URL."""
        return urls.kind(urls.parse(self.url))

    @property
    def schema(self) -> str | None:
        """The PostgreSQL schema that the URL names."""
        return urls.schema_of(urls.parse(self.url))

    def at(self, url: str) -> Target:
        """Return this target at another URL. A pooler is only before PostgreSQL."""
        has_pooler = self.transaction_pooler and urls.kind(urls.parse(url)) == "postgresql"
        return replace(self, url=url, transaction_pooler=has_pooler)

    def open(self, *, migrate: bool | None = None) -> SessionsDB:
        return SessionsDB(
            self.url,
            namespace=self.namespace,
            migrate=migrate,
            transaction_pooler=self.transaction_pooler,
        )

    def open_to_read(self) -> SessionsDB:
        """Return a handle for a command that only shows. It reads standbys if there are any."""
        return SessionsDB(
            self.url,
            namespace=self.namespace,
            transaction_pooler=self.transaction_pooler,
            read_url=self.read_url,
        ).on_standby()

    def sqlite_file(self) -> Path | None:
        """Return the file of a SQLite database, ``None`` for one in memory and for PostgreSQL."""
        return urls.file_of(urls.parse(self.url))

    def require_file(self, place: str = "with --url") -> None:
        """Raise ``InvalidArgument`` if a SQLite file is missing. Opening would create it.

        ``place`` says where the command takes the database from.
        """
        file = self.sqlite_file()
        if file is not None and not file.exists():
            raise InvalidArgument(f"no database file {file}; name another one {place}")
