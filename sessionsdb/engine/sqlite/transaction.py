"""Run operations in transactions of SQLite, on the thread of a connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sessionsdb.engine.runner import Operation
from sessionsdb.engine.sqlite.connection import SqliteConnection
from sessionsdb.engine.sqlite.errors import translate_errors
from sessionsdb.engine.sqlite.write_lock import begin_immediate
from sessionsdb.errors import StorageError

T = TypeVar("T")

_NORMAL = 1
"""The level of ``PRAGMA synchronous`` that syncs the log at checkpoints only."""


def run_read(connection: SqliteConnection, operation: Operation[T], in_memory: bool) -> T:
    """Run an operation that only reads, in a transaction that is rolled back."""
    try:
        with translate_errors():
            # In memory there is one connection. A caller's transaction may be open on it.
            if in_memory and connection.raw.in_transaction:
                return operation(connection.connection)
            connection.raw.execute("BEGIN")
            try:
                return operation(connection.connection)
            finally:
                _roll_back(connection)
    except StorageError as error:
        connection.mark_if_broken(error)
        raise


def commit_group(
    connection: SqliteConnection, operations: list[Operation[Any]]
) -> list[Any] | None:
    """Run all operations in one transaction, each in a savepoint so that it can fail alone.

    Returns one result or exception for each operation, in order. Returns ``None`` if a caller's
    transaction is open on this connection.
    """
    if connection.raw.in_transaction:
        return None
    if len(operations) == 1:
        return [_commit_one(connection, operations[0])]
    try:
        with translate_errors():
            begin_immediate(connection.raw, connection.busy_seconds)
    except StorageError as error:
        connection.mark_if_broken(error)
        # It has waited for the lock up to the busy timeout: no further wait for each operation.
        return [error] * len(operations)
    try:
        results = [_run_in_savepoint(connection, operation) for operation in operations]
        connection.raw.execute("COMMIT")
        connection.connection.commit()
    except sqlite3.Error:
        # The transaction is gone with all its writes: each operation runs in one of its own.
        _roll_back(connection)
        return [_commit_one(connection, operation) for operation in operations]
    try:
        connection.require_file()
    except StorageError as error:
        return [error] * len(operations)
    return results


def commit_unsynced(
    connection: SqliteConnection, operations: list[Operation[Any]]
) -> list[Any] | None:
    """Run all operations as ``commit_group`` does, without a wait for the disk.

    A crash of the machine may take the transaction back, and no transaction before it. The next
    commit of another group also writes this one out.
    """
    if connection.raw.in_transaction:
        return None
    with _synchronous_normal(connection):
        return commit_group(connection, operations)


@contextmanager
def _synchronous_normal(connection: SqliteConnection) -> Iterator[None]:
    level = connection.raw.execute("PRAGMA synchronous").fetchone()[0]
    if level <= _NORMAL:
        yield
        return
    connection.raw.execute(f"PRAGMA synchronous = {_NORMAL}")
    try:
        yield
    finally:
        try:
            connection.raw.execute(f"PRAGMA synchronous = {level}")
        except sqlite3.Error as error:
            connection.distrust(error)  # it is opened again, with the pragmas of the engine


def _run_in_savepoint(connection: SqliteConnection, operation: Operation[Any]) -> Any:
    connection.raw.execute("SAVEPOINT operation")
    try:
        with translate_errors():
            result = operation(connection.connection)
    except Exception as error:
        connection.mark_if_broken(error)
        if not connection.raw.in_transaction:
            raise sqlite3.OperationalError("the transaction was rolled back") from error
        connection.raw.execute("ROLLBACK TO operation")
        result = error
    connection.raw.execute("RELEASE operation")
    return result


def _commit_one(connection: SqliteConnection, operation: Operation[Any]) -> Any:
    try:
        with translate_errors():
            begin_immediate(connection.raw, connection.busy_seconds)
            result = operation(connection.connection)
            connection.raw.execute("COMMIT")
            connection.connection.commit()
        connection.require_file()
        return result
    except Exception as error:
        connection.mark_if_broken(error)
        _roll_back(connection)
        return error


def _roll_back(connection: SqliteConnection) -> None:
    try:
        if connection.raw.in_transaction:
            connection.raw.execute("ROLLBACK")
    except sqlite3.Error as error:
        connection.mark_if_broken(error)  # it is closed then, which also rolls back
    connection.connection.rollback()
