"""Translate the errors of drivers into ``StorageError``."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from sessionsdb.engine.sqlite.error_hints import error_hint
from sessionsdb.errors import StorageError

REFUSED_SQLSTATE_CLASSES = frozenset(("21", "22", "23", "44", "54", "P0"))
"""The classes of PostgreSQL's error codes that are about what a statement was given: cardinality,
data, integrity, check option, limits, and what a trigger raised."""


class ConnectionLost(StorageError):
    """The connection broke, and what was asked for may or may not have been done."""


class StatementRefused(StorageError):
    """The database refused a statement for what it was given; nothing was done."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn what the driver raises into ``StorageError``, with the original as its cause."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise as_storage_error(error) from driver_error(error)


def driver_error(error: BaseException) -> BaseException:
    """What the driver raised, without what SQLAlchemy wrapped around it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.driver_exception
    return error


def as_storage_error(error: BaseException) -> StorageError:
    cause = driver_error(error)
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return ConnectionLost(f"the connection to the database was lost: {cause}")
        refused = getattr(error.orig, "sqlstate", None) or ""
        if (
            isinstance(error, (DataError, IntegrityError))
            or refused[:2] in REFUSED_SQLSTATE_CLASSES
        ):
            return StatementRefused(f"the database refused a statement: {cause}")
    if isinstance(error, OSError):
        return StorageError(f"the database can't be reached: {cause}")
    return StorageError(f"the database failed: {cause}{error_hint(cause)}")
