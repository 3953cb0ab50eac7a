"""The work that is due in the namespaces of a worker, whether it has free slots or not."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError
from sessionsdb.operations import expiry, firing
from sessionsdb.operations.inbox_types import Due
from sessionsdb.runtime.database_access import DONE, WORK
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry import observed

log = logging.getLogger("sessionsdb.worker")

LONGEST_PAUSE_SECONDS = 30.0
"""The longest pause before work that has failed is tried again."""


class DueWork:
    """The due work of one worker. Work that fails is tried again later, and no claim waits for it.

    A fault of one schedule would keep the messages of all sessions waiting otherwise.
    """

    def __init__(
        self, database: OpenDatabase, namespaces: Collection[str] | None, *, max_attempts: int
    ) -> None:
        self._database = database
        self._namespaces = namespaces
        self._max_attempts = max_attempts
        self._reaping = _Tries("take back expired leases")
        self._firing = _Tries("send scheduled messages")

    async def do(self, due: Due) -> int:
        """Do what is due. Return how many messages are dead after their last attempt."""
        dead = 0
        if due.in_seconds == 0 and self._reaping.seconds_left() == 0:
            with self._reaping.one():
                dead = await wake_and_reap(
                    self._database, self._namespaces, max_attempts=self._max_attempts
                )
        if due.schedule_in_seconds == 0 and self._firing.seconds_left() == 0:
            with self._firing.one():
                await fire_schedules(self._database, self._namespaces)
        return dead

    def seconds_left(self) -> float:
        """Return the time until work that has failed is tried again, 0 if none has."""
        return max(self._reaping.seconds_left(), self._firing.seconds_left())


class _Tries:
    """The pauses of one kind of work while it fails."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._failures = 0
        self._next_at = 0.0

    def seconds_left(self) -> float:
        return max(0.0, self._next_at - time.monotonic())

    @contextmanager
    def one(self) -> Iterator[None]:
        """Try the work in the block. The first failure in a row is logged as a warning."""
        try:
            yield
        except SessionsDBError as error:
            self._failures += 1
            pause = backoff_seconds(self._failures, max_seconds=LONGEST_PAUSE_SECONDS)
            self._next_at = time.monotonic() + pause
            level = logging.WARNING if self._failures == 1 else logging.DEBUG
            log.log(level, "can't %s, trying again: %s", self._work, error)
        else:
            self._failures = 0


async def wake_and_reap(
    database: OpenDatabase, namespaces: Collection[str] | None, *, max_attempts: int
) -> int:
    """Make sessions ready again whose backoff is over or whose worker died.

    Return how many messages are dead after their last attempt.
    """
    # No wake-up: this worker claims next, and all others poll at the end of the same backoff.
    await database.write(partial(expiry.wake, namespaces=namespaces), wakes=())
    reaped = await database.write(
        partial(expiry.reap, namespaces=namespaces, max_attempts=max_attempts),
        wakes=lambda reaped: (DONE,) if reaped.dead else (),
    )
    leases, dead = reaped.leases, reaped.dead
    for key in reaped.reporting:
        one = await database.write(
            partial(expiry.reap_reporting, key=key, max_attempts=max_attempts),
            wakes=lambda one: (WORK, DONE) if one.dead else (),
        )
        leases, dead = leases + one.leases, dead + one.dead
    if leases:
        log.warning(
            "took back %s", "1 expired lease" if leases == 1 else f"{leases} expired leases"
        )
        observed.telemetry.record_expired_leases(leases)
    return dead


async def fire_schedules(database: OpenDatabase, namespaces: Collection[str] | None) -> None:
    """Send the scheduled messages that are due.

    A worker without a free slot sends them too: another worker may have one.
    """
    fired = await database.write(
        partial(firing.fire, namespaces=namespaces, limits=database.limits),
        wakes=lambda fired: (WORK,) if fired.messages else (),
    )
    if fired.messages or fired.refused:
        log.debug("sent %d scheduled messages, %d inboxes are full", *fired)
