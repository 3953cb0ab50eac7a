"""The sessions whose rows the open transactions of callers lock."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import ref

from sessionsdb.operations.keys import SessionKey

if TYPE_CHECKING:
    from sqlalchemy import Connection

_Holder = Callable[[], bool]
"""Whether the transaction still has its locks."""


class LockedSessions:
    """The sessions to which this process sends in transactions that callers keep open.

    A batch with another request for such a session waits until its transaction ends. If the caller
    awaited a request of that batch in the transaction, both would wait for ever. PostgreSQL can't
    see that: for the server the transaction is idle. So these sessions get batches of their own.
    """

    def __init__(self) -> None:
        self._holders: dict[Hashable, list[_Holder]] = {}

    def __bool__(self) -> bool:
        if self._holders:  # otherwise a transaction that has ended would cost each later batch
            self._forget_ended()
        return bool(self._holders)

    def __contains__(self, key: Hashable) -> bool:
        return any(holds() for holds in self._holders.get(key, ()))

    @contextmanager
    def add(self, key: SessionKey, connection: Connection | None) -> Iterator[None]:
        """Add a session until the block has ended and the connection is in no transaction."""
        if connection is None:  # it was never started, and its use fails
            yield
            return
        is_sending = True
        used = ref(connection)

        def holds() -> bool:
            return is_sending or bool((found := used()) and found.in_transaction())

        self._holders.setdefault(key, []).append(holds)
        try:
            yield
        finally:
            is_sending = False

    def _forget_ended(self) -> None:
        for key, holders in list(self._holders.items()):
            holders[:] = [holds for holds in holders if holds()]
            if not holders:
                del self._holders[key]
