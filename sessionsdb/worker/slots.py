"""The slots of a worker: how many sessions it may claim, and which turns may begin.

A turn has its slot until its commit has ended. Its worker does not wait for that to claim the next
session: the claim runs beside the commit, and the next turn begins when the slot is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from sessionsdb.worker.leases import HeldLease, LeaseKeeper

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
        self._committing: set[HeldLease] = set()
        """The turns that commit, and whose slots a claim may fill already."""
        self._waiting: deque[HeldLease] = deque()
        self._has_backlog = False
        self._full_claims_to_pass = 0
        self._pause = 1

    def free(self) -> int:
        """Return how many sessions can be claimed now."""
        return self._count - len(self._leases) + len(self._committing)

    @property
    def claims_ahead(self) -> bool:
        """Whether a claim of now is for slots of turns that commit."""
        return bool(self._committing)

    def taken(self) -> Iterator[HeldLease]:
        """The leases that hold a slot, or wait for one."""
        return (held for held in self._leases if held not in self._committing)

    def offer(self, held: HeldLease) -> bool:
        """Let a session be claimed for the slot of a turn that commits from now on.

        Returns ``False``, and does nothing, if that would not pay.
        """
        if not self._has_backlog or self._full_claims_to_pass:
            return False
        self._committing.add(held)
        return True

    def count_claim(self, wanted: int, claimed: int, *, ahead: bool) -> None:
        """Learn from a claim whether the next turns that commit offer their slots."""
        self._has_backlog = claimed == wanted
        if ahead and claimed:
            self._pause = 1
        elif ahead:
            self._full_claims_to_pass = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif self._has_backlog and self._full_claims_to_pass:
            self._full_claims_to_pass -= 1

    def take(self, held: HeldLease) -> None:
        """Give a slot to the turn of a new lease, or let it wait for one. Called before the lease
        is added to the others."""
        if len(self._leases) - len(self._waiting) >= self._count:
            held.slot = asyncio.get_running_loop().create_future()
            self._waiting.append(held)

    def release(self, held: HeldLease) -> None:
        """Give the slot of a turn that has ended to the next one that waits. Called after the lease
        is removed from the others."""
        self._committing.discard(held)
        if held in self._waiting:  # it was stopped before it began
            self._waiting.remove(held)
        while self._waiting and len(self._leases) - len(self._waiting) < self._count:
            following = self._waiting.popleft().slot
            if following is not None and not following.done():
                following.set_result(None)
