"""The sessions whose rows the open transactions of callers lock."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sessionsdb.operations.keys import SessionKey

if TYPE_CHECKING:
    from sqlalchemy import Connection

FEW = 100
"""So many sessions are kept before those of transactions that have ended are looked for."""


class LockedSessions:
    """The sessions to which this process sends in transactions that callers keep open.

    A batch with another request for such a session waits until its transaction ends. If the caller
    awaited a request of that batch in the transaction, both would wait for ever. PostgreSQL can't
    see that: for the server the transaction is idle. So these sessions get batches of their own.
    """

    def __init__(self) -> None:
        self._holders: dict[Hashable, WeakKeyDictionary[Connection, int]] = {}
        """The connections that have sent to a session, each with the number of sends under way."""
        self._forget_from = FEW

    def __bool__(self) -> bool:
        if self._holders:  # otherwise a transaction that has ended would cost each later batch
            self._forget_ended()
        return bool(self._holders)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._holders and _is_locked(self._holders[key])

    @contextmanager
    def add(self, key: SessionKey, connection: Connection | None) -> Iterator[None]:
        """Add a session until the block has ended and the connection is in no transaction."""
        if connection is None:  # it was never started, and its use fails
            yield
            return
        if len(self._holders) >= self._forget_from:
            self._forget_ended()
            self._forget_from = max(FEW, 2 * len(self._holders))
        holders = self._holders.setdefault(key, WeakKeyDictionary())
        holders[connection] = holders.get(connection, 0) + 1
        try:
            yield
        finally:
            holders[connection] -= 1

    def _forget_ended(self) -> None:
        for key, holders in list(self._holders.items()):
            if not _is_locked(holders):
                del self._holders[key]


def _is_locked(holders: WeakKeyDictionary[Connection, int]) -> bool:
    """Return whether one of the transactions still has its locks."""
    return any(sends or connection.in_transaction() for connection, sends in holders.items())
