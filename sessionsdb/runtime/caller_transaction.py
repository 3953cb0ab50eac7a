"""Run operations inside a transaction of the caller."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event

from sessionsdb.engine.dialect import kind_of
from sessionsdb.engine.notifier import Hint, Topic
from sessionsdb.engine.runner import Operation
from sessionsdb.errors import InvalidArgument
from sessionsdb.operations.keys import SessionKey
from sessionsdb.runtime.database_access import Topics
from sessionsdb.runtime.open_database import OpenDatabase

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")

WAKE_DELAY_SECONDS = 0.02
"""From the event that comes before the caller's COMMIT to the wake-up: the commit takes time."""

_topics_by_connection: WeakKeyDictionary[Connection, set[Topic | Hint]] = WeakKeyDictionary()
"""The topics that commits of a connection wake."""


async def run_in_caller_transaction(
    database: OpenDatabase,
    connection: AsyncConnection,
    operation: Operation[T],
    *,
    key: SessionKey,
    wakes: Topics,
) -> T:
    """Run ``operation`` on the caller's connection. It commits or rolls back with the caller's
    transaction, and a commit wakes ``wakes``. Until then the rows of the session ``key`` are
    locked.

    The operation runs in a savepoint. When it fails, the savepoint is rolled back and the caller's
    transaction can go on. The same holds on SQLite when it is cancelled. On PostgreSQL, where it
    may wait for a lock, SQLAlchemy invalidates the connection of any cancelled statement, and the
    whole transaction is rolled back.

    Raises ``InvalidArgument`` for a connection to another kind of database, and for one in
    AUTOCOMMIT that has no transaction.
    """
    # Here, because it imports SQLAlchemy's ORM: see ``urls.engine_of``.
    from sqlalchemy.ext.asyncio import AsyncConnection

    await database.ready()
    if not isinstance(connection, AsyncConnection):
        raise InvalidArgument(
            f"connection must be an SQLAlchemy AsyncConnection, not {type(connection).__name__}"
        )
    if kind_of(connection) != kind_of(database.sync_engine):
        raise InvalidArgument(
            f"connection is to a {kind_of(connection)} database, the sessions are in "
            f"{kind_of(database.sync_engine)}: it must be on the same database"
        )
    with database.locked_sessions.add(key, connection.sync_connection):
        result = await database.runner.run_in_savepoint(connection, operation)
    _wake_after_commit(database, connection, wakes)
    return result


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
