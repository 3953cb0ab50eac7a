"""Go on after a lost answer: wait for the database, and find out whether it was committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from sessionsdb.engine.postgresql import server_process
from sessionsdb.engine.postgresql.retries import pause_before_retry
from sessionsdb.engine.postgresql.server_process import ServerProcess
from sessionsdb.engine.runner import Operation
from sessionsdb.engine.storage_errors import ONE_IS_BAD
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import StorageError

T = TypeVar("T")

RECOVERY_SECONDS = 30.0
"""How long a write whose answer was lost waits for the database to come back."""

RESULT_UNKNOWN = "whether the write was committed is unknown; read before you repeat it"
NOTHING_WRITTEN = "nothing was written"


class OutOfReach(StorageError):
    """The database did not come back in time after a connection broke."""


class _Read(Protocol):
    async def __call__(self, operation: Operation[T]) -> T: ...


async def repeat(
    attempt: Callable[[], Awaitable[T]],
    *,
    until: Callable[[], bool] = lambda: False,
    verdict: Callable[[], str] = lambda: RESULT_UNKNOWN,
) -> T:
    """Run ``attempt`` until it succeeds, for up to ``RECOVERY_SECONDS`` while the database fails.

    An error is raised at once if the server refuses the statement, or if ``until`` returns true
    after it. At the end ``OutOfReach`` is raised, which says what ``verdict`` returns.
    """
    deadline = time.monotonic() + RECOVERY_SECONDS
    failures = 0
    while True:
        try:
            return await attempt()
        except ONE_IS_BAD:
            raise  # the server answered: it will refuse the statement again
        except StorageError as error:
            if until():
                raise
            if time.monotonic() > deadline:
                raise OutOfReach(
                    "the connection broke before the answer came, and the database has been out "
                    f"of reach for {RECOVERY_SECONDS:.0f} s since: {verdict()}"
                ) from error.__cause__
        failures += 1
        await asyncio.sleep(backoff_seconds(failures, first_seconds=0.02, max_seconds=1.0))


async def terminate(read: _Read, process: ServerProcess) -> None:
    """End the server process behind a broken connection, so that its statement stops.

    The server notices a lost client when it next sends something to it. Until then a statement
    that waits for a lock goes on, and keeps the locks that it has. A statement outside of a
    transaction would commit after its request was looked up, not found, and executed again.
    """
    while process.identity is not None:
        if await read(partial(server_process.terminate, identity=process.identity)):
            return
        await pause_before_retry()
