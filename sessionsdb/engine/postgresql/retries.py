"""Repeat operations that PostgreSQL rolled back and asks to have repeated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from sessionsdb.engine.storage_errors import as_storage_error
from sessionsdb.errors import StorageError

T = TypeVar("T")

MAX_ATTEMPTS = 6
"""How many times an operation is started when the database keeps asking for a repetition."""

STANDBY_ATTEMPTS = 2
"""The same for a read of a standby. The second one has a new connection."""

READ_ONLY_SQLSTATE = "25006"
"""``read_only_sql_transaction``: the server is a standby."""

DATABASE_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""The errors that a use of the database can raise.

SQLAlchemy 2.0 passes on the driver's errors at connecting, and 2.1 makes its own of them.
"""

# deadlock_detected, serialization_failure
_RETRY_SQLSTATES = frozenset(("40P01", "40001"))


# invalid_sql_statement_name, duplicate_prepared_statement: the driver prepared it on one connection
# of the server, and a pooler has passed the next message to another.
_LOST_STATEMENT_SQLSTATES = frozenset(("26000", "42P05"))


class RetryTransaction(StorageError):
    """The database rolled the operation back and asks for it to be repeated."""


async def run_with_retries(
    run: Callable[[], Awaitable[T]],
    retry_on: tuple[type[StorageError], ...],
    max_attempts: int = MAX_ATTEMPTS,
) -> T:
    """Run until it succeeds, at most ``max_attempts`` times. Other errors are raised at once."""
    attempts = 0
    while True:
        attempts += 1
        try:
            return await run()
        except retry_on as error:
            if attempts == max_attempts:
                raise without_retry(error) from error.__cause__
        await pause_before_retry()


async def pause_before_retry() -> None:
    await asyncio.sleep(random.uniform(0.005, 0.05))


def is_key_race(error: BaseException) -> bool:
    """Return whether two concurrent writes used one idempotency key.

    When the write is repeated, it finds the row of the first one.
    """
    return isinstance(error, IntegrityError) and "uq_" in str(error.orig)


def as_postgres_error(error: Exception) -> StorageError:
    """Return the ``StorageError`` for an error. ``RetryTransaction`` asks for a repetition."""
    if isinstance(error, DBAPIError):
        sqlstate = getattr(error.orig, "sqlstate", None)
        if sqlstate == READ_ONLY_SQLSTATE:
            return RetryTransaction(f"the server is read-only, a standby perhaps: {error.orig}")
        if sqlstate in _RETRY_SQLSTATES or is_key_race(error):
            return RetryTransaction(f"the database failed: {error.orig}")
    return as_storage_error(error, _pooler_hint(error))


def _pooler_hint(error: Exception) -> str:
    """Return the remedy for an error that a pooler causes, or an empty text."""
    sqlstate = getattr(getattr(error, "orig", error), "sqlstate", None)
    if sqlstate in _LOST_STATEMENT_SQLSTATES:
        return "; behind a pooler in transaction mode open it with transaction_pooler=True"
    if "unsupported startup parameter" in str(error):
        return (
            "; the pooler refuses settings at connecting: leave server_settings out of an engine "
            "of yours, and behind a pooler in transaction mode open it with transaction_pooler=True"
        )
    return ""


def without_retry(error: StorageError) -> StorageError:
    """Return the error for a caller, which sees a plain ``StorageError`` after the last attempt."""
    return StorageError(str(error)) if isinstance(error, RetryTransaction) else error
