"""Find out what became of writes whose answers were lost."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, Protocol, TypeVar

from sessionsdb.engine.postgresql import commit_status
from sessionsdb.engine.postgresql.commit_status import CommitAttempt, ServerProcess
from sessionsdb.engine.postgresql.retries import pause_before_retry
from sessionsdb.engine.runner import Operation
from sessionsdb.engine.storage_errors import StatementRefused
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import StorageError

T = TypeVar("T")

RECOVERY_SECONDS = 30.0
"""How long a write whose answer was lost waits for the database to come back."""

# invalid_parameter_value, for the id of a transaction that this server has not reached
_XID_IN_FUTURE_SQLSTATE = "22023"

_UNKNOWN_RESULT = "whether the write was committed is unknown; read before you repeat it"


class _Read(Protocol):
    async def __call__(self, operation: Operation[T]) -> T: ...


class Recovery:
    """Asks the primary about lost writes, for up to ``RECOVERY_SECONDS`` while it is away."""

    def __init__(self, read: _Read) -> None:
        self._read = read

    async def read_durable(self, operation: Operation[T]) -> T:
        """Run an operation on the primary, and wait until the rows it read are durable."""
        return await self._read_on_primary(partial(commit_status.read_durable, operation=operation))

    async def terminate(self, process: ServerProcess) -> None:
        """End the server process behind a broken connection, so that its statement stops.

        The server notices a lost client when it next sends something to it. Until then a statement
        that waits for a lock goes on. It would commit after its request was looked up, not found,
        and executed again.
        """
        while process.identity is not None:
            ended = await self._read_on_primary(
                partial(commit_status.terminate_backend, identity=process.identity)
            )
            if ended:
                return
            await pause_before_retry()

    async def was_committed(self, attempt: CommitAttempt[Any]) -> bool:
        """Return whether a transaction whose COMMIT was not answered has been committed.

        The transaction id answers this within one run of the server. After a crash or a failover
        the id may have been given again, if the first transaction with it never reached the disk
        or the standby. Then the status "committed" may be about another transaction. Raises
        ``StorageError`` if the result is unknown.
        """
        if attempt.xid is None:
            return True  # it wrote nothing
        failures = 0
        while True:
            try:
                status, run = await self.read_durable(
                    partial(commit_status.transaction_status, xid=attempt.xid)
                )
            except StatementRefused as error:
                if getattr(error.__cause__, "sqlstate", None) == _XID_IN_FUTURE_SQLSTATE:
                    return False  # its writes never reached this server
                raise
            if status == "aborted":
                return False
            if status == "committed" and attempt.process.belongs_to(run):
                return True
            if status != "in progress":
                raise StorageError(
                    "the server restarted or failed over before it answered a commit: "
                    + _UNKNOWN_RESULT
                )
            failures += 1
            await asyncio.sleep(backoff_seconds(failures, first_seconds=0.02, max_seconds=1.0))

    async def _read_on_primary(self, operation: Operation[T]) -> T:
        deadline = time.monotonic() + RECOVERY_SECONDS
        failures = 0
        while True:
            try:
                return await self._read(partial(commit_status.read_on_primary, operation=operation))
            except StatementRefused:
                raise  # the server answered: it will refuse the statement again
            except StorageError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        "the connection broke before the answer came, and the database has been "
                        f"out of reach for {RECOVERY_SECONDS:.0f} s since: {_UNKNOWN_RESULT}"
                    ) from error.__cause__
            failures += 1
            await asyncio.sleep(backoff_seconds(failures, first_seconds=0.02, max_seconds=1.0))
