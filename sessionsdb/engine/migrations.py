"""Read, check and change the schema revision of a database.

Alembic runs the revisions. They are in ``migrations/``, beside the package in a checkout and inside
it in a wheel. A migration holds a lock, so that two concurrent ones both succeed: the second finds
the schema up to date.
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
from sqlalchemy import Connection
from sqlalchemy.util.concurrency import await_only, in_greenlet

from sessionsdb.engine import urls
from sessionsdb.engine.dialect import kind_of
from sessionsdb.engine.postgresql.migration_lock import lock_migrations
from sessionsdb.engine.repeatable import repeatable
from sessionsdb.errors import SchemaOutOfDate
from sessionsdb.schema import VERSION_TABLE, metadata

# Alembic keeps its state in module globals, so a process runs one migration at a time.
_RUN_LOCK = threading.Lock()


def configuration(**attributes: Any) -> Config:
    """Return alembic's configuration, in a checkout and in an installed package."""
    package = Path(__file__).resolve().parent.parent
    in_wheel, in_checkout = package / "migrations", package.parent / "migrations"
    config = Config()
    config.set_main_option(
        "script_location", str(in_wheel if in_wheel.is_dir() else in_checkout).replace("%", "%%")
    )
    config.attributes.update(attributes)
    return config


@cache
def head() -> str:
    """Return the revision that this version of the package works with."""
    revision = ScriptDirectory.from_config(configuration()).get_current_head()
    assert revision is not None
    return revision


@cache
def revisions() -> tuple[str, ...]:
    """Return all revisions, oldest first."""
    scripts = ScriptDirectory.from_config(configuration())
    return tuple(script.revision for script in scripts.walk_revisions())[::-1]


def current(connection: Connection) -> str | None:
    """Return the revision of a database, or ``None`` if it has no revision."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def check(connection: Connection) -> None:
    """Raise ``SchemaOutOfDate`` unless the database is at the head."""
    revision = current(connection)
    if revision != head():
        newer = revision is not None and revision not in revisions()
        raise SchemaOutOfDate(revision, head(), newer=newer)


@repeatable("a second run finds the schema up to date, and changes nothing")
def upgrade(connection: Connection, target: str = "head") -> tuple[str | None, str | None]:
    """Upgrade a database to ``target`` in the caller's transaction.

    Returns the revisions before and after. Raises ``SchemaOutOfDate`` for a database of a newer
    version of the package.
    """
    lock(connection)
    before = current(connection)
    if before is not None and before not in revisions():
        raise SchemaOutOfDate(before, head(), newer=True)
    with _exclusive_run():
        command.upgrade(configuration(connection=connection), target)
    return before, current(connection)


def downgrade(connection: Connection, target: str) -> None:
    """Downgrade a database to ``target`` in the caller's transaction.

    Data that only later revisions can store is lost.
    """
    lock(connection)
    with _exclusive_run():
        command.downgrade(configuration(connection=connection), target)


def lock(connection: Connection) -> None:
    """Wait until no other migration runs, and keep others out until the transaction ends.

    SQLite needs no lock, since it has one write transaction at a time.
    """
    if kind_of(connection) == "postgresql":
        lock_migrations(connection)


@contextmanager
def _exclusive_run() -> Iterator[None]:
    # Over asyncpg, alembic runs in a greenlet of the event loop. It must not block the loop, since
    # the run that holds the lock may be on the same loop.
    while not _RUN_LOCK.acquire(blocking=not in_greenlet()):
        await_only(asyncio.sleep(0.005))
    try:
        yield
    finally:
        _RUN_LOCK.release()


def ddl(url: str, target: str = "head", *, since: str | None = None) -> str:
    """Return the SQL that ``upgrade`` would run, for a DBA to run."""
    out = io.StringIO()
    config = configuration(dialect=urls.kind(urls.parse(url)))
    config.output_buffer = out
    with _exclusive_run():
        command.upgrade(config, f"{since or 'base'}:{target}", sql=True)
    return out.getvalue()


def url_of(config: Config) -> str:
    """Return the URL for the ``alembic`` command, of ``SESSIONSDB_URL`` or of ``alembic.ini``."""
    return os.environ.get("SESSIONSDB_URL") or config.get_main_option("sqlalchemy.url") or ""


def dialect_of(config: Config) -> str:
    """Return the dialect to print SQL for in alembic's offline mode."""
    dialect = config.attributes.get("dialect")
    return str(dialect) if dialect is not None else urls.kind(urls.parse(url_of(config)))


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Return whether autogenerate should look at an object: other tables may be beside ours."""
    return kind != "table" or name in metadata.tables
