"""Statements that tell what became of a write whose answer was lost.

They tell which server process ran the write, whether the process still runs, and whether the
primary has committed the transaction. ``docs/reliability.md`` lists the moments at which an answer
can be lost.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

from sessionsdb.engine.runner import Operation
from sessionsdb.errors import StorageError

T = TypeVar("T")

# insufficient_privilege
_NOT_ALLOWED_SQLSTATE = "42501"

_PROCESS_INFO_KEY = "sessionsdb_backend"
"""The entry of a connection's ``info`` that holds the identity of its server process."""

# The process id alone does not identify a process: after a restart or a failover another process
# may have it. Its start time does. `postmaster_start` and `stats_reset` identify the run of the
# server, in which no transaction id is given twice: a crash can take the counter back behind ids
# that were never written to the disk, and it also resets the statistics.
_IDENTIFY = text("""
    SELECT pg_catalog.pg_backend_pid() AS pid,
      (SELECT backend_start
       FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())) AS started,
      pg_catalog.pg_postmaster_start_time() AS postmaster_start,
      (SELECT stats_reset FROM pg_catalog.pg_stat_wal) AS stats_reset
""")

# Waits up to one second for the process to end, and returns false if it still runs.
_TERMINATE = text("""
    SELECT pg_catalog.pg_terminate_backend(pid, 1000) FROM pg_catalog.pg_stat_activity
    WHERE pid = :pid AND backend_start = :started AND pid <> pg_catalog.pg_backend_pid()
      AND usename = current_user AND datname = pg_catalog.current_database()
""")

_TRANSACTION_STATUS = text("""
    SELECT pg_catalog.pg_xact_status(CAST(CAST(:xid AS text) AS xid8)) AS status,
      pg_catalog.pg_postmaster_start_time() AS postmaster_start,
      (SELECT stats_reset FROM pg_catalog.pg_stat_wal) AS stats_reset
""")
_XID = text("SELECT CAST(pg_catalog.pg_current_xact_id_if_assigned() AS text)")

_IS_STANDBY = text("SELECT pg_catalog.pg_is_in_recovery()")

# Commits a message in the WAL, and everything before it with it: to the disk, and to the standbys
# that a commit waits for.
_CONFIRM_DURABLE = text("SELECT pg_catalog.pg_logical_emit_message(true, 'sessionsdb', '')")


class ServerRun(NamedTuple):
    """One run of a server, from a start or a crash recovery to the next."""

    postmaster_start: Any
    stats_reset: Any


class ServerProcess:
    """The server process behind a connection, so that it can be ended if the connection breaks."""

    def __init__(self) -> None:
        self.identity: Row[Any] | None = None

    def run(self, connection: Connection, operation: Operation[T]) -> T:
        """Run an operation, and note the process that runs it.

        The process is asked for its identity once in the life of a connection.
        """
        info = connection.info
        if _PROCESS_INFO_KEY not in info:
            info[_PROCESS_INFO_KEY] = connection.execute(_IDENTIFY).one()
        self.identity = info[_PROCESS_INFO_KEY]
        return operation(connection)

    def belongs_to(self, run: ServerRun) -> bool:
        identity = self.identity
        return identity is not None and run == (identity.postmaster_start, identity.stats_reset)


class CommitAttempt(Generic[T]):
    """One run of an operation in a transaction, with the data to ask for its status later."""

    def __init__(self, operation: Operation[T]) -> None:
        self._operation = operation
        self.result: T
        self.xid: str | None = None
        """The transaction id. ``None`` if the transaction wrote nothing."""
        self.process = ServerProcess()
        self.committing = False
        """Whether COMMIT has been sent."""

    def run(self, connection: Connection) -> None:
        self.result = self.process.run(connection, self._operation)
        self.xid = connection.execute(_XID).scalar()


def terminate_backend(connection: Connection, identity: Row[Any]) -> bool:
    """End a server process, and return whether it has ended.

    Also true when the server forbids it. Then a lookup is all that is left to do.
    """
    try:
        ended = connection.execute(
            _TERMINATE, {"pid": identity.pid, "started": identity.started}
        ).scalar()
        return ended is not False
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED_SQLSTATE:
            return True
        raise


def transaction_status(connection: Connection, xid: str) -> tuple[str | None, ServerRun]:
    """Return the status of a transaction, and the run of the server that reports it."""
    row = connection.execute(_TRANSACTION_STATUS, {"xid": xid}).one()
    return row.status, ServerRun(row.postmaster_start, row.stats_reset)


def read_on_primary(connection: Connection, operation: Operation[T]) -> T:
    """Run an operation, unless the server is a standby.

    A standby may not have received a write yet: a row that is missing there may still arrive.
    """
    if connection.execute(_IS_STANDBY).scalar():
        connection.invalidate()
        raise StorageError("the server is a standby, which can't say what was committed")
    return operation(connection)


def read_durable(connection: Connection, operation: Operation[T]) -> T:
    """Run an operation, and wait until the rows it read are durable.

    A row may be committed on this server alone: a process that waited for a standby was ended, or
    the server crashed. Once a caller knows the row, it must survive the loss of this server.

    Both run on one connection, since the next connection may lead to another server. The
    confirmation comes second, since it takes a transaction id, perhaps the very id that the
    operation asks about.
    """
    result = operation(connection)
    try:
        connection.execute(_CONFIRM_DURABLE)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED_SQLSTATE:
            raise
    return result
