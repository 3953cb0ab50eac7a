"""Run an operation inside a caller's own transaction on PostgreSQL."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb.engine.postgresql.retries import is_key_race
from sessionsdb.engine.postgresql.search_path import run_in_schema
from sessionsdb.engine.runner import NO_TRANSACTION, Operation
from sessionsdb.engine.storage_errors import as_storage_error, driver_error
from sessionsdb.errors import InvalidArgument

T = TypeVar("T")

MAX_KEY_RACES = 3
"""How many times a send is repeated after another send with its idempotency key came first."""

# no_active_sql_transaction
_NO_TRANSACTION_SQLSTATE = "25P01"


async def run_in_savepoint(
    connection: AsyncConnection, operation: Operation[T], *, schema: str | None
) -> T:
    """Run an operation in a savepoint, with the tables in ``schema``.

    The operation may wait for a lock. When it is cancelled, SQLAlchemy invalidates the connection
    as for any cancelled statement, and the whole transaction is rolled back.

    Raises ``InvalidArgument`` for a connection without a transaction, in AUTOCOMMIT.
    """
    if schema is not None:
        operation = partial(run_in_schema, operation=operation, schema=schema)

    def in_savepoint(sync_connection: Connection) -> T:
        for _ in range(MAX_KEY_RACES):
            try:
                with sync_connection.begin_nested():
                    return operation(sync_connection)
            except IntegrityError as error:
                if not is_key_race(error):
                    raise
        with sync_connection.begin_nested():
            return operation(sync_connection)

    try:
        return await connection.run_sync(in_savepoint)
    except SQLAlchemyError as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == _NO_TRANSACTION_SQLSTATE:
            raise InvalidArgument(NO_TRANSACTION) from driver_error(error)
        raise as_storage_error(error) from driver_error(error)
