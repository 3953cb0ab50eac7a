"""Admit a few callers at a time to the connections, in the order of their calls."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from sessionsdb.errors import StorageError

STALL_SECONDS = 0.005
"""How long callers wait while no admitted caller leaves. Then one more is admitted."""

GROWN_SECONDS = 1.0
"""How long the number of admitted callers stays greater after a stall, while callers wait."""


class FairTurns:
    """Admits ``usual`` callers at once, and the others in the order of their calls.

    A queue or a pool gives a free connection to the caller that asks next, also when others have
    waited for longer. With 64 callers of ``list`` the slowest hundredth took 650 ms on SQLite and
    290 ms on PostgreSQL, and the median 6 ms at most.

    More connections make quick statements no faster: the caller's process is the limit. Slow
    statements need more of them. When no caller has left for ``STALL_SECONDS``, one more is
    admitted, and so on up to ``most``. With ``patience``, callers that wait get a ``StorageError``
    when none of the most has left for as many seconds.
    """

    def __init__(
        self, usual: int, most: int | None = None, *, patience: float | None = None
    ) -> None:
        self._usual = usual
        self._most = most
        self._patience = patience
        self._admitted = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._progress_at = 0.0
        """When a caller left last, or was admitted after a stall."""
        self._waiting_since = 0.0
        """When the first of those that wait began to, or one of those before it."""
        self._grown_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def enter_at_once(self) -> bool:
        """Admit a caller that needs not wait. Otherwise return false."""
        if self._waiting or not self._has_room():
            return False
        self._admitted += 1
        return True

    async def enter(self) -> None:
        """Wait until the caller is admitted. It must call ``leave`` then."""
        turn = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append(turn)
        if self._timer is None:
            self._watch()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._drop_cancelled()
            elif turn.exception() is None:  # admitted and cancelled in the same step
                self.leave()
            raise

    def note_progress(self) -> None:
        """Tell that an admitted caller has done one of several reads. Any thread may call this."""
        self._progress_at = time.monotonic()

    def leave(self) -> None:
        """Make room for the next caller."""
        self._admitted -= 1
        self._progress_at = now = time.monotonic()
        if not self._waiting:
            return
        if self._admitted < self._usual or now < self._grown_until:
            self._admit_next()
        else:  # one caller fewer than before
            self._grown_until = now + GROWN_SECONDS

    def _has_room(self) -> bool:
        """Return whether one more may be admitted. Notes the growth if it is more than usual."""
        if self._admitted < self._usual:
            return True
        if self._most is not None and self._admitted >= self._most:
            return False
        now = time.monotonic()
        if now - self._progress_at < STALL_SECONDS:
            return False
        self._progress_at, self._grown_until = now, now + GROWN_SECONDS
        return True

    def _admit_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._admitted += 1
                turn.set_result(None)
                return

    def _drop_cancelled(self) -> None:
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(STALL_SECONDS, self._check_for_stall)

    def _check_for_stall(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        if self._has_room():
            self._admit_next()
        elif self._patience is not None:
            stalled_since = max(self._progress_at, self._waiting_since)
            if time.monotonic() > stalled_since + self._patience:
                self._refuse_waiting(self._patience)
        self._watch()

    def _refuse_waiting(self, seconds: float) -> None:
        """Fail the callers that wait. One of them may be what the admitted ones wait for."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(
                    StorageError(
                        f"no connection was free for {seconds:g} s: {self._admitted} calls wait "
                        "for the database; look for a lock that a transaction keeps"
                    )
                )
        self._waiting.clear()
