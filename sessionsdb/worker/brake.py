"""Slow a worker down as a whole when all its turns fail.

A broken deployment fails every turn. Without the brake the first message of every session would
soon be dead, after its last attempt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from sessionsdb.operations.inbox_types import Lease

log = logging.getLogger("sessionsdb.worker")

FAILURES = 10
"""So many failed turns without a committed one between them put the brake on."""

SESSIONS = 4
"""They must be of at least so many sessions. A few bad messages are for their own backoffs."""

FIRST_PAUSE_SECONDS = 1.0

LONGEST_PAUSE_SECONDS = 60.0

TRIALS = 16
"""Among so many more sessions the worker looks for a message that has not failed yet."""


class Brake:
    """Counts the turns that fail in a row.

    While the brake is on, one turn runs at a time, after a pause that doubles with every failure
    from 1 to 60 seconds. One committed turn takes it off. The turn is one of a message that has not
    failed yet, if there is one: see ``split_trial``.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._sessions: set[object] = set()
        self._pause = 0.0
        self._until = 0.0

    @property
    def is_on(self) -> bool:
        return self._pause > 0

    def seconds_left(self) -> float:
        """Return how long the worker must not begin a turn."""
        return max(0.0, self._until - time.monotonic()) if self.is_on else 0.0

    def committed(self) -> None:
        if self.is_on:
            log.warning("a turn was committed: the worker goes on at full speed")
        self._failures = 0
        self._sessions.clear()
        self._pause = 0.0

    def failed(self, session: object) -> None:
        self._failures += 1
        if len(self._sessions) < SESSIONS:
            self._sessions.add(session)
        if self._failures < FAILURES or len(self._sessions) < SESSIONS:
            return
        if self.seconds_left() > 0:
            return  # a turn that began before the brake
        self._pause = min(2 * self._pause or FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._until = time.monotonic() + self._pause
        log.error(
            "all of the last %d turns failed, in %d or more sessions: something is wrong with the "
            "handler or its surroundings; the worker tries one turn in %.0f s",
            self._failures,
            len(self._sessions),
            self._pause,
        )


def split_trial(leases: Sequence[Lease]) -> tuple[list[Lease], list[Lease]]:
    """Return the lease that a worker with the brake on tries, and the others.

    It is the first one whose messages have not failed yet. A few bad messages that fail again and
    again would otherwise come first, and a good message behind them would wait for many pauses.
    """
    trial = next((index for index, one in enumerate(leases) if not one.is_retried), 0)
    return [leases[trial]], [*leases[:trial], *leases[trial + 1 :]]
