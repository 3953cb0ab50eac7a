"""The tries of a write that ends a turn, while the database fails."""

from __future__ import annotations

import asyncio
import logging
import time

from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import StorageError
from sessionsdb.worker.leases import HeldLease

log = logging.getLogger("sessionsdb.worker")

LONGEST_PAUSE_SECONDS = 2.0


class Tries:
    """Tries a write again until the length of one lease has passed since its first failure.

    It ends earlier where the lease can't be renewed. Heartbeats may succeed for ever where one
    session's write fails for ever: damaged rows, a full tablespace. Without an end such a turn
    would keep its slot until the worker stops.
    """

    def __init__(self, held: HeldLease, lease_seconds: float, wish: str) -> None:
        """``wish``: what can't be done, for the log."""
        self._held = held
        self._lease_seconds = lease_seconds
        self._wish = wish
        self._failures = 0
        self._ends_at = 0.0

    @property
    def have_failed(self) -> bool:
        return self._failures > 0

    @property
    def has_lease(self) -> bool:
        """Whether the lease is still held, by the clock of this process."""
        return time.monotonic() <= self._held.deadline

    async def go_on(self, error: StorageError) -> bool:
        """Return after a pause whether to try again. ``False`` at once: there is no time left."""
        now = time.monotonic()
        self._failures += 1
        if self._failures == 1:
            self._ends_at = now + self._lease_seconds
        if now >= self._ends_at or not self.has_lease:
            log.warning("can't %s, giving up: %s", self._wish, error)
            return False
        log.warning("can't %s, trying again: %s", self._wish, error)
        await asyncio.sleep(backoff_seconds(self._failures, max_seconds=LONGEST_PAUSE_SECONDS))
        return True
