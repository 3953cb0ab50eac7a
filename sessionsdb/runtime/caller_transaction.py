"""Run operations inside a transaction of the caller."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb.engine.notifier import Topic
from sessionsdb.engine.postgresql.runner import is_key_race
from sessionsdb.engine.runner import Operation
from sessionsdb.engine.storage_errors import as_storage_error, driver_error
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import InvalidArgument
from sessionsdb.runtime.database_access import Topics
from sessionsdb.runtime.open_database import OpenDatabase

T = TypeVar("T")

KEY_RACES = 3
"""How often an operation is repeated that raced with another one of its idempotency key."""

WAKE_DELAY_SECONDS = 0.02
"""From the event that comes before the caller's COMMIT to the wake-up: the commit takes time."""

_topics_by_connection: WeakKeyDictionary[Connection, set[Topic]] = WeakKeyDictionary()
"""The topics that commits of a connection wake."""


async def run_in_caller_transaction(
    database: OpenDatabase,
    connection: AsyncConnection,
    operation: Operation[T],
    *,
    wakes: Topics,
) -> T:
    """Run ``operation`` on the caller's connection. It commits or rolls back with the caller's
    transaction, and a commit wakes ``wakes``.

    The operation runs in a savepoint. When it fails, the savepoint is rolled back and the caller's
    transaction can go on. The same holds on SQLite when it is cancelled. On PostgreSQL, where it
    may wait for a lock, SQLAlchemy invalidates the connection of any cancelled statement, and the
    whole transaction is rolled back.

    Raises ``InvalidArgument`` for a connection to another kind of database.
    """
    if not isinstance(connection, AsyncConnection):
        raise InvalidArgument(
            f"connection must be an SQLAlchemy AsyncConnection, not {type(connection).__name__}"
        )
    if connection.dialect.name != database.engine.dialect.name:
        raise InvalidArgument(
            f"connection is to a {connection.dialect.name} database, the sessions are in "
            f"{database.engine.dialect.name}: it must be on the same database"
        )

    on_sqlite = connection.dialect.name == "sqlite"
    cancelled = asyncio.Event()

    def in_savepoint(sync_connection: Connection) -> T:
        if on_sqlite:
            _begin_on_sqlite(sync_connection)
            with sync_connection.begin_nested():
                result = operation(sync_connection)
                if cancelled.is_set():
                    raise asyncio.CancelledError
                return result
        for _ in range(KEY_RACES):
            try:
                with sync_connection.begin_nested():
                    return operation(sync_connection)
            except IntegrityError as error:
                if not is_key_race(error):
                    raise
        with sync_connection.begin_nested():
            return operation(sync_connection)

    work = connection.run_sync(in_savepoint)
    try:
        # SQLite's driver finishes a statement on its thread although its caller was cancelled.
        # The lock that the statement takes would then stay with the connection.
        result = await (finish_before_cancel(work, cancelled.set) if on_sqlite else work)
    except SQLAlchemyError as error:
        raise as_storage_error(error) from driver_error(error)
    _wake_after_commit(database, connection, wakes)
    return result


def _begin_on_sqlite(connection: Connection) -> None:
    """Begin a transaction at once.

    The driver begins one only at the first write, and a savepoint outside of a transaction commits
    when it is released. An engine of the caller has no setting against this.
    """
    if not connection.in_transaction():
        connection.begin()
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _wake_after_commit(database: OpenDatabase, connection: AsyncConnection, wakes: Topics) -> None:
    sync_connection = connection.sync_connection
    if sync_connection is None:
        return
    topics = _topics_by_connection.get(sync_connection)
    if topics is None:  # one listener for a connection, however many messages it sends
        topics = _topics_by_connection[sync_connection] = set()
        loop = asyncio.get_running_loop()

        def wake_later(_connection: Connection) -> None:
            loop.call_later(WAKE_DELAY_SECONDS, database.wake, tuple(topics))

        event.listen(sync_connection, "commit", wake_later)
    topics.update(wakes)
