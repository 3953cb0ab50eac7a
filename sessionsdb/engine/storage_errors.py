"""Classify the errors of drivers as ``StorageError``."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from sessionsdb.errors import DamagedValue, StorageError

REFUSED_SQLSTATE_CLASSES = frozenset(("21", "22", "23", "44", "54", "P0"))
"""The classes of PostgreSQL's error codes for a statement's values.

In order: cardinality, data, integrity, check option, limits, and errors raised by triggers.
"""

DAMAGE_SQLSTATE_CLASSES = frozenset(("XX", "58"))
"""The classes of PostgreSQL's error codes for damaged rows and indices, with all other internal
errors, and for files that can't be read."""

_LOCK_TIMEOUT_SQLSTATE = "55P03"


class ConnectionLost(StorageError):
    """The connection broke before the answer came. The write may or may not be committed."""


class StatementRefused(StorageError):
    """The database refused the values of a statement. Nothing was written."""


class DataDamaged(StorageError):
    """The database failed at a statement, perhaps because some of its rows are damaged. A statement
    over other rows may succeed."""


class UndecodableText(DataDamaged):
    """A row on SQLite holds a text that is not UTF-8. Nothing was written."""


ONE_IS_BAD = (StatementRefused, DamagedValue, UndecodableText)
"""Errors of one request of a batch. Nothing of the batch was written. The others may succeed."""


def driver_error(error: BaseException) -> BaseException:
    """Return the error that the driver raised, without SQLAlchemy's wrapper around it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        # The dialect of asyncpg raises errors of its own from the driver's.
        return error.orig.__cause__ or error.orig
    return error


def is_lock_timeout(error: DBAPIError) -> bool:
    """Return whether PostgreSQL ended a wait for a lock, by its setting ``lock_timeout``."""
    return getattr(error.orig, "sqlstate", None) == _LOCK_TIMEOUT_SQLSTATE


def as_storage_error(error: BaseException, hint: str = "") -> StorageError:
    """Return the ``StorageError`` for an error of a driver or of the network.

    ``hint`` is added to the message of a failure that has no class of its own.
    """
    cause = driver_error(error)
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return ConnectionLost(f"the connection to the database was lost: {cause}")
        sqlstate = getattr(error.orig, "sqlstate", None) or ""
        if (
            isinstance(error, (DataError, IntegrityError))
            or sqlstate[:2] in REFUSED_SQLSTATE_CLASSES
        ):
            return StatementRefused(f"the database refused a statement: {cause}")
        if sqlstate[:2] in DAMAGE_SQLSTATE_CLASSES:
            return DataDamaged(f"the database failed: {cause}{hint}")
        if is_lock_timeout(error):
            hint = (
                "; another transaction holds the lock: find it with pg_blocking_pids() and "
                "pg_stat_activity, end it, and run the command again"
            )
    if isinstance(error, OSError):
        return StorageError(f"the database can't be reached: {cause}{hint}")
    return StorageError(f"the database failed: {cause}{hint}")
