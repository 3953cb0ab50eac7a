"""The schema's revisions: which there are, which the database is at, and the way up.

The revisions are alembic's, in ``migrations/`` beside the package in a checkout and inside it in
a wheel. Whoever migrates holds a lock, so that two at once both succeed: the second finds the
work done.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.util.concurrency import await_only, in_greenlet

from sessionsdb.engine import urls
from sessionsdb.errors import SchemaOutOfDate
from sessionsdb.schema import VERSION_TABLE, metadata

# An arbitrary number of our own, as PostgreSQL's advisory locks are named.
_LOCK = text("SELECT pg_advisory_xact_lock(7305811234561)")

# Alembic keeps what it runs in module globals: one run at a time in a process.
_RUNNING = threading.Lock()


def configuration(**attributes: Any) -> Config:
    """Alembic's configuration, wherever the package is installed."""
    package = Path(__file__).resolve().parent.parent
    inside, beside = package / "migrations", package.parent / "migrations"
    config = Config()
    config.set_main_option(
        "script_location", str(inside if inside.is_dir() else beside).replace("%", "%%")
    )
    config.attributes.update(attributes)
    return config


@cache
def head() -> str:
    """The revision this version of the package works with."""
    revision = ScriptDirectory.from_config(configuration()).get_current_head()
    assert revision is not None
    return revision


@cache
def revisions() -> tuple[str, ...]:
    """All revisions, oldest first."""
    scripts = ScriptDirectory.from_config(configuration())
    return tuple(script.revision for script in scripts.walk_revisions())[::-1]


def current(connection: Connection) -> str | None:
    """The revision the database is at; ``None`` if it has none of our tables."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def check(connection: Connection) -> None:
    """Raises ``SchemaOutOfDate`` unless the database is at the head."""
    found = current(connection)
    if found != head():
        newer = found is not None and found not in revisions()
        raise SchemaOutOfDate(found, head(), newer=newer)


def upgrade(connection: Connection, target: str = "head") -> tuple[str | None, str | None]:
    """Bring the database up to ``target`` in the caller's transaction; the revisions before and
    after. Raises ``SchemaOutOfDate`` for a database from a newer version of the package."""
    lock(connection)
    before = current(connection)
    if before is not None and before not in revisions():
        raise SchemaOutOfDate(before, head(), newer=True)
    with _one_run():
        command.upgrade(configuration(connection=connection), target)
    return before, current(connection)


def downgrade(connection: Connection, target: str) -> None:
    """Bring the database down to ``target``, in the caller's transaction. What only the later
    revisions can hold is lost."""
    lock(connection)
    with _one_run():
        command.downgrade(configuration(connection=connection), target)


def lock(connection: Connection) -> None:
    """Wait until nobody else migrates the database, and keep others out until the transaction
    ends. On SQLite the transaction that writes is the only one anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK)


@contextmanager
def _one_run() -> Iterator[None]:
    # Over asyncpg alembic runs in a greenlet of the event loop, which must not be blocked: the
    # run that holds the lock may be on the same loop.
    while not _RUNNING.acquire(blocking=not in_greenlet()):
        await_only(asyncio.sleep(0.005))
    try:
        yield
    finally:
        _RUNNING.release()


def ddl(url: str, target: str = "head", *, since: str | None = None) -> str:
    """The SQL that ``upgrade`` would run, for people whose DBA runs it."""
    out = io.StringIO()
    config = configuration(dialect=urls.kind(urls.parse(url)))
    config.output_buffer = out
    with _one_run():
        command.upgrade(config, f"{since or 'base'}:{target}", sql=True)
    return out.getvalue()


def url_of(config: Config) -> str:
    """The database that the ``alembic`` command is for: ``SESSIONSDB_URL``, else that of
    ``alembic.ini``."""
    return os.environ.get("SESSIONSDB_URL") or config.get_main_option("sqlalchemy.url") or ""


def dialect_of(config: Config) -> str:
    """For the offline mode: the dialect to print SQL for."""
    given = config.attributes.get("dialect")
    return str(given) if given is not None else urls.kind(urls.parse(url_of(config)))


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """For autogenerate: whether a table is one of ours, since we may live beside others."""
    return kind != "table" or name in metadata.tables
