"""The server process behind a connection, so that it can be ended if the connection breaks."""

from __future__ import annotations

from typing import Any, TypeVar

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
# may have it. Its start time does.
_IDENTIFY = text("""
    SELECT pg_catalog.pg_backend_pid() AS pid,
      (SELECT backend_start
       FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())) AS started
""")

# Waits up to one second for the process to end, and returns false if it still runs.
_TERMINATE = text("""
    SELECT pg_catalog.pg_terminate_backend(pid, 1000) FROM pg_catalog.pg_stat_activity
    WHERE pid = :pid AND backend_start = :started AND pid <> pg_catalog.pg_backend_pid()
      AND usename = current_user AND datname = pg_catalog.current_database()
""")

_IS_STANDBY = text("SELECT pg_catalog.pg_is_in_recovery()")


class ServerProcess:
    """The process that runs an operation, once it is known."""

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


def terminate(connection: Connection, identity: Row[Any]) -> bool:
    """End a server process, and return whether it has ended.

    Also true when the server forbids it. Then a lookup is all that is left to do. Raises
    ``StorageError`` on a standby, which does not see the processes of the primary.
    """
    if connection.execute(_IS_STANDBY).scalar():
        connection.invalidate()
        raise StorageError("the server is a standby, which can't end a process of the primary")
    try:
        ended = connection.execute(
            _TERMINATE, {"pid": identity.pid, "started": identity.started}
        ).scalar()
        return ended is not False
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NOT_ALLOWED_SQLSTATE:
            return True
        raise
