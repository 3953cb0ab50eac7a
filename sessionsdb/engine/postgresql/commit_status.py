"""What became of something that was sent to PostgreSQL when its answer was lost: which process ran
it, whether it runs still, and what the primary says. ``docs/reliability.md`` has the moments that
made this so."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

from sessionsdb.engine.runner import Operation
from sessionsdb.errors import StorageError

T = TypeVar("T")

# insufficient_privilege
_NOT_ALLOWED = "42501"

_PROCESS_KEY = "sessionsdb_backend"
"""Under this name a connection keeps who is behind it."""

# A process of a server, by what no other one has: after a restart or a failover its number is
# another's. And the server's run, in which no transaction's number is given twice: a crash may take
# it back behind what was never written out, and it loses the statistics.
_IDENTIFY = text("""
    SELECT pg_backend_pid() AS pid,
      (SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid())) AS started,
      pg_postmaster_start_time() AS run, (SELECT stats_reset FROM pg_stat_wal) AS recovered
""")

# Ends what a broken connection may have left running, and says whether it is gone.
_TERMINATE = text("""
    SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity
    WHERE pid = :pid AND backend_start = :started AND pid <> pg_backend_pid()
      AND usename = current_user AND datname = current_database()
""")

_TRANSACTION_STATUS = text("""
    SELECT pg_xact_status(CAST(CAST(:xid AS text) AS xid8)) AS fate,
      pg_postmaster_start_time() AS run, (SELECT stats_reset FROM pg_stat_wal) AS recovered
""")
_XID = text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")

_IS_STANDBY = text("SELECT pg_is_in_recovery()")

# Commits something, and with it everything before it: to the disk and to the standbys that commits
# wait for.
_CONFIRM_DURABLE = text("SELECT pg_logical_emit_message(true, 'sessionsdb', '')")


class ServerProcess:
    """The server's process behind a connection, to be ended if the connection breaks."""

    def __init__(self) -> None:
        self.who: Row[Any] | None = None

    def run(self, connection: Connection, operation: Operation[T]) -> T:
        """Run ``operation``, and remember who runs it; asked once in a connection's life."""
        known = connection.info
        if _PROCESS_KEY not in known:
            known[_PROCESS_KEY] = connection.execute(_IDENTIFY).one()
        self.who = known[_PROCESS_KEY]
        return operation(connection)

    def ran_in(self, run: tuple[Any, Any]) -> bool:
        return self.who is not None and run == (self.who.run, self.who.recovered)


def terminate_backend(connection: Connection, who: Row[Any]) -> bool:
    try:
        ended = connection.execute(_TERMINATE, {"pid": who.pid, "started": who.started}).scalar()
        return ended is not False
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED:
            return True  # a server that forbids it: then all that can be done is to look
        raise


def transaction_status(connection: Connection, xid: str) -> tuple[str | None, tuple[Any, Any]]:
    """What became of a transaction, and the server's run."""
    row = connection.execute(_TRANSACTION_STATUS, {"xid": xid}).one()
    return row.fate, (row.run, row.recovered)


def read_on_primary(connection: Connection, operation: Operation[T]) -> T:
    """A standby has not seen everything yet: what it does not find may still come."""
    if connection.execute(_IS_STANDBY).scalar():
        connection.invalidate()
        raise StorageError("the server is a standby, which can't say what was committed")
    return operation(connection)


def read_durable(connection: Connection, operation: Operation[T]) -> T:
    """What is found may be committed on this server alone: by the end of a process that waited
    for a standby, or by a crash. Told to the caller, it must outlive this server. On one
    connection, since the next one may lead to another server; and afterwards, since this takes a
    transaction's number, perhaps the very one that is asked for."""
    found = operation(connection)
    try:
        connection.execute(_CONFIRM_DURABLE)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED:
            raise
    return found


class CommitAttempt(Generic[T]):
    """One run of an operation in a transaction, and what is needed to ask about it later."""

    def __init__(self, operation: Operation[T]) -> None:
        self._operation = operation
        self.result: T
        self.xid: str | None = None
        self.backend = ServerProcess()
        self.committing = False

    def run(self, connection: Connection) -> None:
        self.result = self.backend.run(connection, self._operation)
        self.xid = connection.execute(_XID).scalar()
