"""Reads of a PostgreSQL standby, with the primary behind it.

A standby gives answers, never errors: a read that fails there goes to the primary. So a standby
that is gone, that lags, or that does not know a new session costs time and no correctness.

While a standby can't be used, no caller waits for it. A task in the background asks whether it is
back, and all reads go to the primary until then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine import migrations
from sessionsdb.engine.postgresql.runner import PostgresRunner
from sessionsdb.engine.runner import Operation
from sessionsdb.engine.storage_errors import ONE_IS_BAD, DataDamaged
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError, StorageError
from sessionsdb.operations import history
from sessionsdb.operations.history_page import HistoryPage
from sessionsdb.operations.replayed import SeenWrite, has_replayed
from sessionsdb.runtime.database_access import DatabaseAccess
from sessionsdb.runtime.follow_subtree import Followed
from sessionsdb.runtime.followed_standby import FollowedStandby
from sessionsdb.runtime.read_after import ReadAfter, seen_writes
from sessionsdb.types import SessionMessage

log = logging.getLogger("sessionsdb.standby")

T = TypeVar("T")

LAG_SECONDS = 1.0
"""How long a read waits for the standby to replay a write. Then it goes to the primary."""

LAGGING_SECONDS = 5.0
"""How long no other read waits, after one has waited in vain. Each still asks the standby once."""

FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.05
"""The pauses between two questions whether a write was replayed."""

FIRST_CHECK_SECONDS = 0.5
LONGEST_CHECK_SECONDS = 10.0
"""The pauses between two questions whether a standby is back."""

_BEHIND: Final = object()
"""The result of a read on a standby that has not replayed the writes."""


class StandbyReads:
    """The standby of one database. It is connected to at its first read."""

    def __init__(
        self, primary: DatabaseAccess, engine: AsyncEngine, *, transaction_pooler: bool
    ) -> None:
        self.engine = engine
        self._primary = primary
        self._runner = PostgresRunner(
            engine, transaction_pooler=transaction_pooler, own_engine=True, is_standby=True
        )
        self._is_open = False
        self._closings = 0
        """How many times it was closed."""
        self._return: asyncio.Task[None] | None = None
        """Waits for the standby to be back."""
        self._lagging_until = 0.0
        self.followed = FollowedStandby(primary, self)

    def view(self, namespace: str, after: ReadAfter) -> StandbyView:
        """Return the reads of a handle. Raises ``InvalidArgument``."""
        return StandbyView(self, namespace, seen_writes(after))

    @property
    def is_gone(self) -> bool:
        """Whether the standby could not be used, and has not answered since."""
        return self._return is not None and not self._return.done()

    async def read(
        self, operation: Operation[T], has_writes: Operation[bool], *, snapshot: bool = False
    ) -> T:
        """Run an operation on the standby once ``has_writes`` is true there, or on the primary."""
        await self._primary.ready()
        answer = await self._ask(_Guarded(operation, has_writes), snapshot=snapshot)
        if answer is not _BEHIND:
            return cast(T, answer)
        primary = self._primary
        return await (primary.read_snapshot if snapshot else primary.read)(operation)

    async def _ask(self, guarded: _Guarded, *, snapshot: bool) -> Any:
        """Return the standby's answer, or ``_BEHIND`` if the primary has to be asked."""
        patience = time.monotonic() + LAG_SECONDS
        pause = FIRST_PAUSE_SECONDS
        closings = self._closings
        # Opened again by a read that waits while the handle is closed, it would stay open.
        while not self.is_gone and closings == self._closings:
            try:
                await self._open()
                if snapshot:
                    answer = await self._runner.read_snapshot(guarded.run, first=guarded.check)
                else:
                    answer = await self._runner.read(guarded)
            except (*ONE_IS_BAD, DataDamaged):
                break  # the standby is in reach
            except StorageError as error:
                self._give_up(error)
                break
            except SessionsDBError:
                break  # an unknown session, for example: the primary may know it
            now = time.monotonic()
            if answer is not _BEHIND or now < self._lagging_until:
                return answer
            if now >= patience:
                self._lagging_until = now + LAGGING_SECONDS
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return _BEHIND

    async def _open(self) -> None:
        if not self._is_open:
            self._is_open = True
            await self._runner.open()

    def _give_up(self, error: StorageError) -> None:
        if not self.is_gone and self._is_open:
            log.warning("the standby can't be used, reads go to the primary: %s", error)
            self._return = asyncio.create_task(self._await_return())

    async def _await_return(self) -> None:
        failures = 0
        while True:
            failures += 1
            await asyncio.sleep(
                backoff_seconds(
                    failures, first_seconds=FIRST_CHECK_SECONDS, max_seconds=LONGEST_CHECK_SECONDS
                )
            )
            try:
                # A standby that has not replayed a migration would fail again and again.
                revision = await self._runner.read(migrations.current)
                if revision == await self._primary.read(migrations.current):
                    break
            except SessionsDBError:
                continue
        log.info("the standby is back, and gets the reads again")

    async def close(self) -> None:
        """Close the connections to the standby. Waits for the reads under way."""
        self._is_open = False
        self._closings += 1
        if self._return is not None:
            self._return.cancel()
            await asyncio.wait((self._return,))
            self._return = None
        try:
            await self._runner.close()
        finally:
            await self.engine.dispose()


class _Guarded:
    """An operation that runs only on a server which has the writes.

    Both use the same connection: two standbys may lag differently. A snapshot begins after the
    check, so it has the writes that the check found.
    """

    def __init__(self, operation: Operation[Any], has_writes: Operation[bool]) -> None:
        self._operation = operation
        self._has_writes = has_writes
        self._may_run = False

    def __call__(self, connection: Connection) -> Any:
        self.check(connection)
        return self.run(connection)

    def check(self, connection: Connection) -> None:
        self._may_run = self._has_writes(connection)

    def run(self, connection: Connection) -> Any:
        return self._operation(connection) if self._may_run else _BEHIND


class StandbyView:
    """The reads of one handle on a standby: a namespace, and the writes that it must see."""

    def __init__(
        self, standby: StandbyReads, namespace: str, writes: tuple[SeenWrite, ...]
    ) -> None:
        self._standby = standby
        self.followed: Followed = standby.followed
        self._has_writes = partial(has_replayed, namespace=namespace, writes=writes)

    async def read(self, operation: Operation[T]) -> T:
        return await self._standby.read(operation, self._has_writes)

    async def read_snapshot(self, operation: Operation[T]) -> T:
        return await self._standby.read(operation, self._has_writes, snapshot=True)

    async def read_page(self, page: HistoryPage) -> list[SessionMessage]:
        return await self.read(partial(history.read_page, page=page))
