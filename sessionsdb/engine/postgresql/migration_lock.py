"""The lock that keeps two migrations of one PostgreSQL database apart.

It is a lock of the version table. An advisory lock could be held by every role that may connect,
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

from sessionsdb.engine.postgresql.revision import has_version_table
from sessionsdb.schema import VERSION_TABLE

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


def lock_migrations(connection: Connection) -> None:
    """Wait until no other migration runs, and hold the lock until the transaction ends.

    A wait for this lock or for a later one of the transaction fails after ``LOCK_SECONDS``.
    """
    connection.execute(_SET_TIMEOUT)
    if not has_version_table(connection):
        try:
            with connection.begin_nested():
                connection.execute(CreateTable(_VERSION, if_not_exists=True))
        except DBAPIError:  # another migration created it meanwhile, and is done
            if not has_version_table(connection):
                raise
    connection.execute(_LOCK)
