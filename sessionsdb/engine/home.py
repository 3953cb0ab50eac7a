"""The event loop that a database was opened in, the only one that can use its connections."""

from __future__ import annotations

import asyncio
import os

from sessionsdb.errors import HandleOpenedElsewhere


class Home:
    """The running event loop and this process."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._process = os.getpid()

    def require(self) -> None:
        """Raise ``HandleOpenedElsewhere`` in another event loop, or in a process after a fork.

        A forked process has none of its parent's loops running, so the loop tells both.
        """
        if asyncio.get_running_loop() is not self.loop:
            raise HandleOpenedElsewhere(None if os.getpid() == self._process else self._process)
