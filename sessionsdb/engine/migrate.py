"""The schema's revisions: which there are, which the database is at, and the way up.

The revisions are alembic's, in ``migrations/`` beside the package in a checkout and inside it in
a wheel. Whoever migrates holds a lock, so that two at once both succeed: the second finds the
work done.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from sessionsdb.engine import urls
from sessionsdb.errors import SchemaOutOfDate
from sessionsdb.schema import VERSION_TABLE, metadata

# An arbitrary number of our own, as PostgreSQL's advisory locks are named.
_LOCK = text("SELECT pg_advisory_xact_lock(7305811234561)")


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
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK)
    before = current(connection)
    if before is not None and before not in revisions():
        raise SchemaOutOfDate(before, head(), newer=True)
    command.upgrade(configuration(connection=connection), target)
    return before, current(connection)


def downgrade(connection: Connection, target: str) -> None:
    """Bring the database down to ``target``, in the caller's transaction."""
    command.downgrade(configuration(connection=connection), target)


def ddl(url: str, target: str = "head", *, since: str | None = None) -> str:
    """The SQL that ``upgrade`` would run, for people whose DBA runs it."""
    out = io.StringIO()
    config = configuration(dialect=urls.kind(urls.parse(url)))
    config.output_buffer = out
    command.upgrade(config, f"{since or 'base'}:{target}", sql=True)
    return out.getvalue()


def dialect_of(config: Config) -> str:
    """For the offline mode: the dialect to print SQL for."""
    given = config.attributes.get("dialect")
    if given is not None:
        return str(given)
    return urls.kind(urls.parse(config.get_main_option("sqlalchemy.url") or ""))


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """For autogenerate: whether a table is one of ours, since we may live beside others."""
    return kind != "table" or name in metadata.tables
