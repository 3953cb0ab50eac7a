"""Hints that there is work, as fast as they are worth following.

Anybody who may connect to a PostgreSQL database may send notifications, as many as they like. A
claim writes, so hints that lead to nothing must not keep every worker claiming.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sessionsdb.engine.notifier import Signal

BURST = 20
"""How many hints in a row may lead to nothing before they are held back."""

FRUITLESS_A_SECOND = 20.0
"""How many hints a second are followed after that, until one leads to something."""


class WorkHints(Signal):
    """Passes hints on to a worker's signal. One that comes too early is passed on later."""

    def __init__(self, wakeup: Signal, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._wakeup = wakeup
        self._clock = clock
        self._credit = float(BURST)
        self._counted_at = clock()
        self._later: asyncio.TimerHandle | None = None

    def set(self) -> None:
        if self._later is not None:
            return
        seconds = self._seconds_to_wait()
        if seconds <= 0:
            self._wakeup.set()
        else:
            self._later = asyncio.get_running_loop().call_later(seconds, self._pass_on)

    def was_fruitless(self) -> None:
        """Count a hint that led to nothing."""
        self._refill()
        self._credit -= 1

    def was_fruitful(self) -> None:
        """Count a hint that led to something: the next ones are followed at once."""
        self._credit = float(BURST)

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
