"""Check which server answers while the answer of a server is overdue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sessionsdb.engine.postgresql.failover import HostList
from sessionsdb.engine.tasks import BackgroundTasks

PRIMARY_CHECK_SECONDS = 5.0
"""How long an answer may take before another connection checks where the primary is."""

STANDBY_CHECK_SECONDS = 2.0
"""How long the answer of a standby may take before another connection asks whether it answers."""

_Timer = AbstractContextManager[object]


class _Check:
    """Checks a server again and again while its answer is overdue, one check at a time."""

    def __init__(self, hosts: HostList | None, tasks: BackgroundTasks) -> None:
        self._hosts = hosts
        self._tasks = tasks
        self._running: asyncio.Task[Any] | None = None

    def _every(self, seconds: float, check: Callable[[], Coroutine[Any, Any, None]]) -> _Timer:
        def start() -> None:
            if self._running is None or self._running.done():
                self._running = self._tasks.start(check())

        return _RepeatingTimer(seconds, start)


class PrimaryCheck(_Check):
    """Checks where the primary is, every ``PRIMARY_CHECK_SECONDS`` of a wait for an answer.

    An answer from the primary may take any time. A wait for a server that is the primary no longer
    must end: ``HostList`` breaks its connections when another host has taken over.
    """

    def while_waiting(self) -> _Timer:
        """Return a context in which the checks run. There are none if the primary cannot move."""
        if self._hosts is None or not self._hosts.can_move:
            return _NO_TIMER
        return self._every(PRIMARY_CHECK_SECONDS, self._hosts.check_primary)


class StandbyCheck(_Check):
    """Checks whether a standby answers, every ``STANDBY_CHECK_SECONDS`` of a wait for an answer.

    A standby that hangs accepts no new connection. Then ``HostList`` breaks its connections, and
    the primary can be asked instead.
    """

    def while_waiting(self) -> _Timer:
        """Return a context in which the checks run."""
        if self._hosts is None:
            return _NO_TIMER
        return self._every(STANDBY_CHECK_SECONDS, self._hosts.check_answers)


_NO_TIMER = nullcontext()


class _RepeatingTimer:
    """Calls a function at a fixed interval while the block runs."""

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self._seconds = seconds
        self._call = call

    def __enter__(self) -> None:
        self._schedule()

    def __exit__(self, *_: object) -> None:
        self._next.cancel()

    def _schedule(self) -> None:
        self._next = asyncio.get_running_loop().call_later(self._seconds, self._run)

    def _run(self) -> None:
        self._call()
        self._schedule()
