"""Hints that there is work, as fast as they are worth following.

Anybody who may connect to a PostgreSQL database may send notifications, as many as they like. A
claim writes, so hints that lead to nothing must not keep every worker claiming.

Each notification also reaches all workers, and one of them gets the message. A worker learns from
its fruitless hints how many others wait for the same ones. The more they are, the longer it stands
back. So the first of them claims after the same time, however many there are, and most of the
others find nothing left when they look.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from sessionsdb.engine.notifier import Signal

BURST = 20
"""How many hints in a row may lead to nothing before they are held back."""

FRUITLESS_A_SECOND = 20.0
"""How many hints a second are followed after that, until one leads to something."""

SHARE_OF_A_HINT = 1 / 8
"""The weight of the last hint in the moving average of fruitless ones."""

GREATEST_SHARE = 0.95
"""A worker stands back as behind at most 19 others, also in a flood: for 57 ms."""

STAND_BACK_SECONDS = 0.003
"""How long the first of several idle workers stands back, on average. A claim takes as long."""


class WorkHints(Signal):
    """Passes hints on to a worker's signal. One that comes too early is passed on later."""

    def __init__(
        self,
        wakeup: Signal,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        super().__init__()
        self._wakeup = wakeup
        self._clock = clock
        self._uniform = uniform
        self._credit = float(BURST)
        self._counted_at = clock()
        self._later: asyncio.TimerHandle | None = None
        self._fruitless_share = 0.0

    @property
    def are_shared(self) -> bool:
        """Whether another worker probably followed the last hint before this one."""
        return self._fruitless_share > 0.5

    def set(self) -> None:
        if self._later is not None:
            return
        seconds = self._seconds_to_wait() + self._seconds_to_stand_back()
        if seconds <= 0:
            self._wakeup.set()
        else:
            self._later = asyncio.get_running_loop().call_later(seconds, self._pass_on)

    def was_fruitless(self) -> None:
        """Count a hint that led to nothing."""
        self._refill()
        self._credit -= 1
        self._fruitless_share += (1 - self._fruitless_share) * SHARE_OF_A_HINT

    def was_fruitful(self) -> None:
        """Count a hint that led to something: the next fruitless ones are not held back."""
        self._credit = float(BURST)
        self._fruitless_share -= self._fruitless_share * SHARE_OF_A_HINT

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()

    def _pass_on(self) -> None:
        self._later = None
        self._wakeup.set()

    def _refill(self) -> None:
        now = self._clock()
        earned = (now - self._counted_at) * FRUITLESS_A_SECOND
        self._credit = min(float(BURST), self._credit + earned)
        self._counted_at = now

    def _seconds_to_wait(self) -> float:
        if self._credit >= 1:
            return 0.0
        self._refill()
        return (1 - self._credit) / FRUITLESS_A_SECOND

    def _seconds_to_stand_back(self) -> float:
        """Return a random time up to 3 ms for each other worker that probably has this hint."""
        if not self.are_shared:
            return 0.0
        share = min(self._fruitless_share, GREATEST_SHARE)
        return self._uniform(0.0, STAND_BACK_SECONDS * share / (1 - share))
