"""What runs an operation: the same few verbs over both databases."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine.advice import advice
from sessionsdb.errors import SessionsDBError, StorageError

T = TypeVar("T")

Operation = Callable[[Connection], T]
"""A function of a connection. It may be run again if the database asks for it, so it has no
effects but those on the database."""


REFUSALS = frozenset(("21", "22", "23", "44", "54", "P0"))
"""The classes of PostgreSQL's error codes that are about what a statement was given: cardinality,
data, integrity, check option, limits, and what a trigger raised."""


class ConnectionLost(StorageError):
    """The connection broke, and what was asked for may or may not have been done."""


class StatementRefused(StorageError):
    """The database refused a statement for what it was given; nothing was done."""


class NotOpen(SessionsDBError):
    """A handle was used before it was entered, or after it was left."""

    def __init__(self) -> None:
        super().__init__(
            "the database is not open: use the handle inside `async with SessionsDB(…) as db`"
        )


class Runner(Protocol):
    """Runs operations on one database. A caller that is cancelled leaves no transaction open:
    what was begun is finished, done or not done as a whole.

    Between ``open`` and ``close``; at other times everything raises ``NotOpen``.
    """

    engine: AsyncEngine

    async def open(self) -> None:
        """Make ready to run operations."""

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation that only reads."""

    async def statement(self, operation: Operation[T]) -> T:
        """Run an operation that writes by a single statement, committed when this returns; it may
        read before.

        Raises ``ConnectionLost`` if the answer was lost: the caller finds out what happened.
        """

    async def write(self, operation: Operation[T]) -> T:
        """Run an operation in a transaction of its own, committed when this returns."""

    async def settle(self, operation: Operation[T]) -> T:
        """Ask the database what became of something whose answer was lost; with patience, for it
        may be restarting."""

    def rest(self) -> asyncio.Future[Any] | None:
        """Done when all that is under way now is over; ``None`` where what comes after a write
        waits for it anyway."""

    async def close(self) -> None:
        """Wait for what is under way, and close the connections this runner opened."""


@contextmanager
def storage_errors() -> Iterator[None]:
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
        if isinstance(error, (DataError, IntegrityError)) or refused[:2] in REFUSALS:
            return StatementRefused(f"the database refused a statement: {cause}")
    if isinstance(error, OSError):
        return StorageError(f"the database can't be reached: {cause}")
    return StorageError(f"the database failed: {cause}{advice(cause)}")


async def to_its_end(
    work: Coroutine[Any, Any, T], given_up: Callable[[], None] = lambda: None
) -> T:
    """Await work that must not be broken off in the middle. A caller that is cancelled says
    ``given_up``, waits for the end all the same, and is cancelled then."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        given_up()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # seen
        raise


class Tasks:
    """Work that goes on when the caller who asked for it is cancelled."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``. A cancelled caller stops waiting; the work goes on to its end."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` by the side."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def rest(self) -> asyncio.Future[Any] | None:
        """Done when all that is under way now is over; ``None`` if nothing is."""
        return asyncio.ensure_future(asyncio.wait(set(self._running))) if self._running else None

    async def drain(self) -> None:
        """Wait for all that is under way."""
        while self._running:
            await asyncio.wait(self._running)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, whether or not the caller still waits


def pause_after(failures: int, *, first: float = 0.1, most: float = 30.0) -> float:
    """Seconds to the next try when so many have failed in a row: up to ``first`` doubled by each,
    up to ``most``, and drawn from the upper half, so that what failed together does not come back
    together."""
    return min(most, first * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1.0)
