"""A lock for an object that outlives event loops."""

from __future__ import annotations

import asyncio


class LoopLock:
    """A lock between the tasks of one event loop, and later between those of another.

    An ``asyncio.Lock`` stays with the loop in which a task first waited for it. In any other loop
    it raises ``RuntimeError`` as soon as a task has to wait.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock: asyncio.Lock

    def here(self) -> asyncio.Lock:
        """Return the lock of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock
