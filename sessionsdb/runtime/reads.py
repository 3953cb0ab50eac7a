"""The reads that the public verbs need of a database, or of its standby."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol, TypeVar

from sessionsdb.engine.runner import Operation
from sessionsdb.types import SessionMessage

if TYPE_CHECKING:
    from sessionsdb.operations.history_page import HistoryPage
    from sessionsdb.runtime.follow_subtree import Followed

T = TypeVar("T")


class Reads(Protocol):
    """Runs operations that only read."""

    followed: Followed
    """The source of events."""

    def read(self, operation: Operation[T]) -> Awaitable[T]:
        """Run an operation, and return its result."""

    def read_snapshot(self, operation: Operation[T]) -> Awaitable[T]:
        """Run an operation of several reads, which all see the same commits."""

    def read_page(self, page: HistoryPage) -> Awaitable[list[SessionMessage]]:
        """Return the messages of a page. Raises ``UnknownSession``."""
