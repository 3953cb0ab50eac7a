"""What runs an operation: the same few verbs over both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.errors import SessionsDBError

T = TypeVar("T")

Operation = Callable[[Connection], T]
"""A function of a connection. It may be run again if the database asks for it, so it has no
effects but those on the database."""


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

    async def read_durable(self, operation: Operation[T]) -> T:
        """Ask the database what became of something whose answer was lost; with patience, for it
        may be restarting."""

    def in_flight(self) -> asyncio.Future[Any] | None:
        """Done when all that is under way now is over; ``None`` where what comes after a write
        waits for it anyway."""

    async def close(self) -> None:
        """Wait for what is under way, and close the connections this runner opened."""
