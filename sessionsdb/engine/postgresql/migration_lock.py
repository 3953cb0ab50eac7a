"""The revision of an installation on PostgreSQL, and the lock that keeps two migrations apart.

The lock is one of the version table. An advisory lock could be held by every role that may connect,
and a migration would wait for it without end.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from sessionsdb.schema import VERSION_TABLE, metadata

LOCK_SECONDS = 60
"""How long a migration waits for a lock, unless the role or the URL sets ``lock_timeout``."""

_SET_TIMEOUT = text(
    f"SELECT pg_catalog.set_config('lock_timeout', '{LOCK_SECONDS}s', true) "
    "WHERE pg_catalog.current_setting('lock_timeout') = '0'"
)
# The table that alembic would create.
_VERSION = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)
# It conflicts with itself and with writes. Readers of the table can't hold it up.
_LOCK = text(f"LOCK TABLE {VERSION_TABLE} IN SHARE ROW EXCLUSIVE MODE")


_HAS_REVISION = text(f"SELECT pg_catalog.to_regclass('{VERSION_TABLE}') IS NOT NULL")
_REVISION = text(f"SELECT version_num FROM {VERSION_TABLE}")


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or ``None`` without our tables."""
    if not connection.execute(_HAS_REVISION).scalar_one():
        return None
    revision: str | None = connection.execute(_REVISION).scalar()
    return revision


_TAKEN = text("""
    SELECT CAST(c.relname AS text)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema()
      AND c.relname = ANY (CAST(:names AS text[])) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY 1
""")


def taken_names(connection: Connection) -> list[str]:
    """Return the names of our tables that tables or views of the schema have."""
    return list(connection.execute(_TAKEN, {"names": list(metadata.tables)}).scalars())


def lock_migrations(connection: Connection) -> None:
    """Wait until no other migration runs, and hold the lock until the transaction ends.

    A wait for this lock or for a later one of the transaction fails after ``LOCK_SECONDS``.
    """
    connection.execute(_SET_TIMEOUT)
    if not connection.execute(_HAS_REVISION).scalar_one():
        try:
            with connection.begin_nested():
                connection.execute(CreateTable(_VERSION, if_not_exists=True))
        except DBAPIError:  # another migration created it meanwhile, and is done
            if not connection.execute(_HAS_REVISION).scalar_one():
                raise
    connection.execute(_LOCK)
