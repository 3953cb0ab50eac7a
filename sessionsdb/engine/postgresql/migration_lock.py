"""The lock that keeps two migrations of one PostgreSQL database apart.

It is a lock of the version table. An advisory lock could be held by every role that may connect,
and a migration would wait for it without end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

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
from sqlalchemy.util.concurrency import await_only

from sessionsdb.engine.postgresql.revision import has_version_table
from sessionsdb.engine.storage_errors import is_lock_timeout
from sessionsdb.schema import VERSION_TABLE

LOCK_SECONDS = 60
"""How long a migration waits for a lock, unless the role or the URL sets ``lock_timeout``."""

ATTEMPT_SECONDS = 2
"""How long one attempt of a migration waits for a table that others use. All calls that need the
table wait behind it meanwhile."""

_SET_TIMEOUT = text(
    f"SELECT pg_catalog.set_config('lock_timeout', '{LOCK_SECONDS}s', true) "
    "WHERE pg_catalog.current_setting('lock_timeout') = '0'"
)
_SHORTEN_TIMEOUT = text(
    f"SELECT pg_catalog.set_config('lock_timeout', '{ATTEMPT_SECONDS}s', true) "
    f"WHERE pg_catalog.current_setting('lock_timeout') IN ('{LOCK_SECONDS}s', '1min')"
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


def run_in_attempts(connection: Connection, run: Callable[[], None]) -> None:
    """Run a migration that holds the lock. Give its other locks back where it has to wait.

    A long read of a table, as by pg_dump, keeps a migration waiting, and all later calls wait
    behind the migration. So it waits for ``ATTEMPT_SECONDS``, rolls back to the beginning, pauses,
    and begins again, for ``LOCK_SECONDS``. Then the error of the last attempt is raised.
    """
    connection.execute(_SHORTEN_TIMEOUT)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with connection.begin_nested():
                run()
            return
        except DBAPIError as error:
            if not is_lock_timeout(error) or time.monotonic() > deadline:
                raise
        await_only(asyncio.sleep(random.uniform(0.5, 1.0)))
