"""Warn about a handler that blocks the event loop.

While the loop is blocked, no lease is renewed and no other turn goes on. A blocked loop can't
notice this, so a thread does.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

log = logging.getLogger("sessionsdb.worker")

JOIN_SECONDS = 0.1
"""How long the event loop waits at most for the end of the thread."""


class Watchdog:
    """Warns when the running loop is blocked for more than ``seconds``, once for each block."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._last_beat = time.monotonic()
        self._next_beat: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="sessionsdb-watchdog", daemon=True)

    def start(self) -> None:
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. It ends as soon as it wakes.

        This is not awaited in a thread: handlers may hold all those of the event loop's executor.
        """
        self._stopped.set()
        if self._next_beat is not None:
            self._next_beat.cancel()
        self._thread.join(timeout=JOIN_SECONDS)

    def _beat(self) -> None:
        """Runs on the loop: a beat that is late means a blocked loop."""
        self._last_beat = time.monotonic()
        self._next_beat = self._loop.call_later(self._seconds / 4, self._beat)

    def _watch(self) -> None:
        """Runs on the thread."""
        warned_beat = None
        while not self._stopped.wait(self._seconds / 4):
            beat = self._last_beat
            if time.monotonic() - beat > self._seconds and beat != warned_beat:
                warned_beat = beat
                self._warn(time.monotonic() - beat)

    def _warn(self, blocked_seconds: float) -> None:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loop_thread)
        where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else ""
        log.warning(
            "%s has blocked the event loop for %.1f s: leases can't be renewed and no other turn "
            "goes on; await instead, or use asyncio.to_thread. It is at:\n%s",
            "something" if task is None else task.get_name(),
            blocked_seconds,
            where,
        )
