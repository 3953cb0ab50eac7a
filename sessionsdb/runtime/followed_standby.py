"""The reads of a process's followers on a standby.

A follower goes forward only. So a look never reads a state that is older than the look before it,
on whichever server. It waits for the position in the log that the last look saw. A follower begins
at the present of the primary, so its session and its cursor are known there. The looks ask the
primary for its present once a second. So events don't stay away while a standby lags.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.log_position import log_position
from sessionsdb.engine.runner import Operation
from sessionsdb.errors import StorageError
from sessionsdb.runtime.database_access import DatabaseAccess
from sessionsdb.runtime.follow_hub import FollowHub

T = TypeVar("T")

PRESENT_SECONDS = 1.0
"""How often the looks ask the primary for its present."""


class _Standby(Protocol):
    async def read(
        self, operation: Operation[T], has_writes: Operation[bool], *, snapshot: bool = False
    ) -> T: ...


class FollowedStandby:
    """The source of a hub of followers, with the notifications of the primary."""

    def __init__(self, primary: DatabaseAccess, standby: _Standby) -> None:
        self.notifier = primary.notifier
        # A notification of the primary may be here before the standby has the commit.
        self.follow_hub = FollowHub(self, hints_come_early=True)
        self._primary = primary
        self._standby = standby
        self._next_present = 0.0
        self._position = 0
        """The position in the log that a look has seen. No later look sees less."""

    async def ready(self) -> None:
        """Have all looks from now on see what the primary has now."""
        await self._see_present()
        await self._primary.ready()  # it may have been closed meanwhile

    async def _see_present(self) -> None:
        self._next_present = time.monotonic() + PRESENT_SECONDS
        self._move(await self._primary.read(log_position))

    async def read(self, operation: Operation[T]) -> T:
        return await self._read(operation)

    async def read_snapshot(self, operation: Operation[T]) -> T:
        return await self._read(operation, snapshot=True)

    async def _read(self, operation: Operation[T], *, snapshot: bool = False) -> T:
        if time.monotonic() >= self._next_present:
            with contextlib.suppress(StorageError):  # then the standby alone has events
                await self._see_present()
        result: T
        result, position = await self._standby.read(
            partial(_with_position, operation=operation),
            partial(_is_at, position=self._position),
            snapshot=snapshot,
        )
        self._move(position)
        return result

    def _move(self, position: int) -> None:
        self._position = max(self._position, position)


def _with_position(connection: Connection, operation: Operation[Any]) -> tuple[Any, int]:
    return operation(connection), log_position(connection)


def _is_at(connection: Connection, position: int) -> bool:
    return log_position(connection) >= position
