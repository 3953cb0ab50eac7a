"""Operations inside a caller's own transaction."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb.engine.core import Core
from sessionsdb.engine.runner import Operation, as_storage_error
from sessionsdb.errors import InvalidArgument

T = TypeVar("T")

HINT_SECONDS = 0.02
"""How long after the caller's commit began others are told of it."""


async def run(core: Core, connection: AsyncConnection, operation: Operation[T]) -> T:
    """Run ``operation`` on the caller's connection; it commits or rolls back with the caller's
    transaction.

    It stands in a savepoint: when it fails or is cancelled, nothing of it stays, and the
    caller's transaction can go on.
    """
    if not isinstance(connection, AsyncConnection):
        raise InvalidArgument(
            f"connection must be an SQLAlchemy AsyncConnection, not {type(connection).__name__}"
        )
    if connection.dialect.name != core.engine.dialect.name:
        raise InvalidArgument(
            f"connection is to a {connection.dialect.name} database, the sessions are in "
            f"{core.engine.dialect.name}: it must be on the same database"
        )

    def in_savepoint(sync_connection: Connection) -> T:
        with sync_connection.begin_nested():
            return operation(sync_connection)

    try:
        result = await connection.run_sync(in_savepoint)
    except SQLAlchemyError as error:
        raise as_storage_error(error) from error
    _hint_after_commit(core, connection)
    return result


def _hint_after_commit(core: Core, connection: AsyncConnection) -> None:
    loop = asyncio.get_running_loop()

    def hint(_connection: Connection) -> None:
        loop.call_later(HINT_SECONDS, core.wakeups.announce, "work")

    event.listen(connection.sync_connection, "commit", hint, once=True)
