"""Check where the primary is while the answer of a server is overdue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sessionsdb.engine.postgresql.failover import HostList
from sessionsdb.engine.tasks import BackgroundTasks

PRIMARY_CHECK_SECONDS = 5.0
"""How long an answer may take before another connection checks where the primary is."""


class PrimaryCheck:
    """Checks where the primary is, every ``PRIMARY_CHECK_SECONDS`` of a wait for an answer.

    An answer from the primary may take any time. A wait for a server that is the primary no longer
    must end: ``HostList`` breaks its connections when another host has taken over.
    """

    def __init__(self, hosts: HostList | None, tasks: BackgroundTasks) -> None:
        self._hosts = hosts
        self._tasks = tasks
        self._check: asyncio.Task[Any] | None = None

    def while_waiting(self) -> AbstractContextManager[object]:
        """Return a context in which the checks run. There are none if the primary cannot move."""
        if self._hosts is None or not self._hosts.can_move:
            return _NO_TIMER
        return _RepeatingTimer(PRIMARY_CHECK_SECONDS, self._start_check)

    def _start_check(self) -> None:
        if self._hosts is not None and (self._check is None or self._check.done()):
            self._check = self._tasks.start(self._hosts.check_primary())


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
