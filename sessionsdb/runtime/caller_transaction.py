"""Operations inside a caller's own transaction."""

from __future__ import annotations

import asyncio
from typing import TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb.engine.dialect import kind_of
from sessionsdb.engine.runner import Operation
from sessionsdb.errors import InvalidArgument
from sessionsdb.runtime.open_database import OpenDatabase

T = TypeVar("T")

NOTIFY_DELAY_SECONDS = 0.02
"""How long after the caller's commit began others are told of it."""

_notifying: WeakSet[Connection] = WeakSet()
"""The connections whose commits are told."""


async def run_in_caller_transaction(
    core: OpenDatabase, connection: AsyncConnection, operation: Operation[T]
) -> T:
    """Run ``operation`` on the caller's connection; it commits or rolls back with the caller's
    transaction.

    It stands in a savepoint: when it fails, nothing of it stays and the caller's transaction can
    go on. So it can on SQLite when it is cancelled in the middle. On PostgreSQL, where it may wait
    for a lock, SQLAlchemy then gives the connection up, as for any statement that is cancelled,
    and the whole transaction is rolled back.
    """
    if not isinstance(connection, AsyncConnection):
        raise InvalidArgument(
            f"connection must be an SQLAlchemy AsyncConnection, not {type(connection).__name__}"
        )
    if kind_of(connection) != kind_of(core.engine):
        raise InvalidArgument(
            f"connection is to a {kind_of(connection)} database, the sessions are in "
            f"{kind_of(core.engine)}: it must be on the same database"
        )
    result = await core.runner.run_in_savepoint(connection, operation)
    _notify_after_commit(core, connection)
    return result


def _notify_after_commit(core: OpenDatabase, connection: AsyncConnection) -> None:
    """Once a connection: a caller may send many messages over one."""
    sync_connection = connection.sync_connection
    if sync_connection is None or sync_connection in _notifying:
        return
    _notifying.add(sync_connection)
    loop = asyncio.get_running_loop()

    def hint(_connection: Connection) -> None:
        loop.call_later(NOTIFY_DELAY_SECONDS, core.notifier.notify, "work")

    event.listen(sync_connection, "commit", hint)
