"""Run an operation inside a caller's own transaction on SQLite."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from sessionsdb.engine import urls
from sessionsdb.engine.runner import NO_TRANSACTION, Operation
from sessionsdb.engine.sqlite.errors import translate_errors
from sessionsdb.engine.sqlite.write_lock import begin_immediate_on
from sessionsdb.engine.tasks import finish_before_cancel
from sessionsdb.errors import InvalidArgument
from sessionsdb.private_apis import is_autocommit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


async def run_in_savepoint(connection: AsyncConnection, operation: Operation[T]) -> T:
    """Run an operation in a savepoint. A cancelled caller waits until it is rolled back.

    SQLite's driver finishes a statement on its thread after the caller is cancelled, and the
    connection would keep the lock of that statement.
    """
    cancelled = asyncio.Event()

    def in_savepoint(sync_connection: Connection) -> T:
        _begin(sync_connection)
        with sync_connection.begin_nested():
            result = operation(sync_connection)
            if cancelled.is_set():
                raise asyncio.CancelledError
            return result

    with translate_errors():
        return await finish_before_cancel(connection.run_sync(in_savepoint), cancelled.set)


def _begin(connection: Connection) -> None:
    """Begin a transaction on an engine of the caller's, which may not have begun one yet.

    The driver begins a transaction at the first write only, and a savepoint outside of a
    transaction commits when it is released.

    Raises ``InvalidArgument`` in AUTOCOMMIT: no commit would follow, and the end of the connection
    would roll the transaction back.
    """
    if not connection.in_transaction():
        connection.begin()
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        if is_autocommit(connection):
            raise InvalidArgument(NO_TRANSACTION)
        begin_immediate_on(connection, urls.busy_seconds(connection.engine.url))
