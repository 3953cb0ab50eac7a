"""The slots of a worker: how many sessions it may claim, and which turns may begin.

A turn has its slot until its commit has ended. Its worker does not wait for that to claim the next
session: the claim runs beside the commit, and the next turn begins when the slot is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from sessionsdb.worker.leases import HeldLease, LeaseKeeper

LONGEST_WAIT = 1.0
"""Seconds after which a session that was claimed ahead is given back. A commit takes as long only
when it waits for a lock or for the database. Another worker may run the session at once."""

LONGEST_PAUSE = 64
"""After a claim ahead that found nothing, at most so many full claims pass before the next one."""


class Slots:
    """``count`` slots, and the leases that are claimed for them.

    A session is claimed ahead for the slot of a turn that commits. So a worker has at most two
    leases for each slot, for the time of a commit, and never more than ``count`` turns.

    A claim ahead is a wasted statement if no other session is ready. So it is made only while there
    is a backlog: the last claim returned as many sessions as it asked for. On PostgreSQL a claim
    beside a commit does not see the next message of the session that commits. A worker whose one
    session has a backlog claims ahead after 1, 2, 4 … 64 full claims.
    """

    def __init__(self, count: int, leases: LeaseKeeper) -> None:
        self._count = count
        self._leases = leases
        self._committing: dict[HeldLease, None] = {}
        """The turns that commit, and whose slots a claim may fill already. The oldest is first."""
        self._waiting: deque[tuple[HeldLease, float]] = deque()
        """Leases whose turns have no slot yet, and since when they wait."""
        self._alarm: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._has_backlog = False
        self._full_claims_to_pass = 0
        self._pause = 1

    def free(self) -> int:
        """Return how many sessions can be claimed now."""
        return max(0, self._count - len(self._leases) + len(self._committing))

    def is_ahead(self, wanted: int) -> bool:
        """Return whether a claim of ``wanted`` sessions is for slots of turns that commit, too."""
        return wanted > self._count - len(self._leases)

    def taken(self) -> Iterator[HeldLease]:
        """The leases that hold a slot, or wait for one."""
        return (held for held in self._leases if held not in self._committing)

    def offer(self, held: HeldLease) -> bool:
        """Let a session be claimed for the slot of a turn that commits from now on.

        Returns ``False``, and does nothing, if that would not pay.
        """
        if not self._has_backlog or self._full_claims_to_pass or self._is_closed:
            return False
        self._committing[held] = None
        return True

    def count_claim(self, wanted: int, claimed: int, *, ahead: bool) -> None:
        """Learn from a claim whether the next turns that commit offer their slots."""
        self._has_backlog = claimed == wanted
        if ahead and claimed:
            self._pause = 1
        elif ahead:
            self._full_claims_to_pass = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            while len(self._committing) > len(self._waiting):
                self._committing.popitem()
        elif self._has_backlog and self._full_claims_to_pass:
            self._full_claims_to_pass -= 1

    def take(self, held: HeldLease) -> None:
        """Give a slot to the turn of a new lease, or let it wait for one. Called before the lease
        is added to the others."""
        if len(self._leases) - len(self._waiting) < self._count:
            return
        loop = asyncio.get_running_loop()
        held.slot = loop.create_future()
        self._waiting.append((held, loop.time()))
        if self._alarm is None:
            self._alarm = loop.call_later(LONGEST_WAIT, self._ring)

    def release(self, held: HeldLease) -> None:
        """Give the slot of a turn that has ended to the next one that waits. Called after the lease
        is removed from the others."""
        self._committing.pop(held, None)
        if held.slot is not None and (held.slot.cancelled() or not held.slot.done()):
            # It was stopped before it began.
            self._waiting = deque(one for one in self._waiting if one[0] is not held)
        while self._waiting and len(self._leases) - len(self._waiting) < self._count:
            _answer(self._waiting.popleft()[0], may_begin=True)

    def give_back_all(self) -> None:
        """Give back all leases that wait for a slot: their turns do not begin."""
        self._give_back(float("inf"))

    def close(self) -> None:
        """Offer no slot from now on, and give back the leases that wait for one."""
        self._is_closed = True
        self.give_back_all()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        """Give back the leases that have waited for ``LONGEST_WAIT``. One alarm serves all."""
        self._alarm = None
        loop = asyncio.get_running_loop()
        self._give_back(loop.time() - LONGEST_WAIT)
        if self._waiting:
            self._alarm = loop.call_at(self._waiting[0][1] + LONGEST_WAIT, self._ring)

    def _give_back(self, since: float) -> None:
        while self._waiting and self._waiting[0][1] <= since:
            # The turn that commits has its slot until it ends: no other session is claimed for it.
            if self._committing:
                del self._committing[next(iter(self._committing))]
            _answer(self._waiting.popleft()[0], may_begin=False)


def _answer(held: HeldLease, *, may_begin: bool) -> None:
    if held.slot is not None and not held.slot.done():
        held.slot.set_result(may_begin)
