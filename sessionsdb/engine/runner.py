"""The protocol that the runners of both databases implement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import Connection

from sessionsdb.errors import SessionsDBError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
Request = TypeVar("Request")
Result = TypeVar("Result")

Operation = Callable[[Connection], T]
"""A function of a connection. A runner may run it again when the database asks for a retry, so
its only effects are on the database."""

ExecuteRequests = Callable[[Connection, list[Request]], Sequence[Result]]
"""Write a list of requests and return one result for each, in order."""

FindCommitted = Callable[[Connection, Request], Result | None]
"""Return the result of a request that was committed, or ``None`` if it was not."""


NO_TRANSACTION = (
    "connection is in AUTOCOMMIT and has no transaction, so nothing would commit what is written "
    "there; use a connection without it, as in `async with db.engine.begin() as connection`"
)


class NotOpen(SessionsDBError):
    """A handle was used after it was closed."""

    def __init__(self) -> None:
        super().__init__(
            "the database is not open: this handle was closed; use it inside `async with db`, or "
            "open it again with `await db.open()`"
        )


class Runner(Protocol):
    """Runs operations on one database.

    A cancelled caller leaves no transaction open: an operation that has begun is finished or
    rolled back as a whole. Every method but ``open`` and ``close`` raises ``NotOpen`` before
    ``open`` and after ``close``. A method that writes does so once ``close`` has begun.
    """

    parallel_batches: int
    """How many batches of one kind of request may be in flight at once."""

    has_one_writer: bool
    """Whether the database takes one write at a time, in the order in which they were started."""

    sees_uncommitted: bool
    """Whether a read may see what an open transaction of a caller has written."""

    async def open(self) -> None:
        """Open the connections that operations need."""

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation that only reads."""

    async def read_snapshot(self, operation: Operation[T]) -> T:
        """Run an operation that only reads, with several statements that see the same commits."""

    async def write(self, operation: Operation[T]) -> T:
        """Run an operation in a transaction of its own, committed before this returns.

        When an answer is lost, a stamp of the write tells whether it was committed, and the
        operation runs again only if it was not.
        """

    async def write_repeatable(self, operation: Operation[T]) -> T:
        """Run an operation in a transaction of its own that leaves no stamp.

        When an answer is lost, the operation runs again. See ``repeatable``.
        """

    async def write_autocommit(self, operation: Operation[T]) -> T:
        """Run an operation that writes with one SQL statement, committed before this returns.

        The operation may read before it writes. Raises ``ConnectionLost`` if the connection broke
        before the answer came: the write may or may not have been committed.
        """

    async def write_unsynced(self, operation: Operation[T]) -> T:
        """Run an operation as ``write_autocommit`` does, without its durability.

        The write is visible when this returns. A crash of the server, or of the machine, may take
        it back. No other write waits for a disk because of it. On PostgreSQL the statement itself
        sets ``synchronous_commit``, for its own transaction.
        """

    async def write_exactly_once(
        self,
        requests: list[Request],
        execute: ExecuteRequests[Request, Result],
        find_committed: FindCommitted[Request, Result],
    ) -> list[Result]:
        """Run ``execute`` as ``write_autocommit`` does, and repeat no committed request.

        When an answer is lost, ``find_committed`` looks each request up, and only requests that
        were not committed are executed again. Returns one result for each request, in order.
        """

    async def read_durable(self, operation: Operation[T]) -> T:
        """Look up a write whose answer was lost, on the primary, once the result is durable.

        Waits while the database restarts or fails over.
        """

    async def run_in_savepoint(self, connection: AsyncConnection, operation: Operation[T]) -> T:
        """Run an operation in a savepoint of a caller's transaction.

        When the operation fails, the savepoint is rolled back and the transaction can go on.
        Raises ``InvalidArgument`` for a connection in AUTOCOMMIT that has no transaction.
        """

    def writes_in_flight(self) -> asyncio.Future[Any] | None:
        """Return a future that is done when all operations in flight now have ended.

        ``None`` if there are none, or if every later write waits for them anyway.
        """

    async def close(self) -> None:
        """Wait for operations in flight, then close the connections that this runner opened."""
