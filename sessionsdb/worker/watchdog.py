"""Notices a handler that blocks the event loop.

While the loop is blocked no lease is renewed and no other turn goes on. The loop can't notice
that itself, so a thread does.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

log = logging.getLogger("sessionsdb.worker")


class Watchdog:
    """Warns, once a block, when the running loop has not come round for ``seconds``."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._beat = time.monotonic()
        self._beating: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._watch, name="sessionsdb-watchdog", daemon=True)

    def start(self) -> None:
        self._come_round()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._beating is not None:
            self._beating.cancel()
        self._thread.join()

    def _come_round(self) -> None:
        self._beat = time.monotonic()
        self._beating = self._loop.call_later(self._seconds / 4, self._come_round)

    def _watch(self) -> None:
        warned_at = None
        while not self._stopped.wait(self._seconds / 4):
            beat = self._beat
            if time.monotonic() - beat > self._seconds and beat != warned_at:
                warned_at = beat
                self._warn(time.monotonic() - beat)

    def _warn(self, blocked: float) -> None:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loop_thread)
        where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else ""
        log.warning(
            "%s has blocked the event loop for %.1f s: leases can't be renewed and no other turn "
            "goes on; await instead, or use asyncio.to_thread. It is at:\n%s",
            "something" if task is None else task.get_name(),
            blocked,
            where,
        )
