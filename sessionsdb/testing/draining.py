"""Run a handler in a test until no inbox has an unfinished message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import wraps

from sessionsdb import sync
from sessionsdb.database import SessionsDB
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.types import Outcome
from sessionsdb.worker.handler import (
    BrokenHandler,
    Handler,
    HandlerResult,
    checked_handler,
    require_awaitable,
)
from sessionsdb.worker.turn import Turn


class MessageDied(SessionsDBError):
    """A message died during ``drain``. The last exception of the handler is the ``__cause__``."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        super().__init__(f"{_describe(outcomes)}; pass allow_dead=True if the test expects that")
        self.outcomes = list(outcomes)
        """The outcomes of the messages that died, the oldest first. Those that are gone since, as
        with a deleted session, are left out."""


def _describe(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "a message died and is gone"
    first = outcomes[0]
    more = f" and {len(outcomes) - 1} more" if len(outcomes) > 1 else ""
    error = (first.error or "no error").partition("\n")[0]
    attempts = "1 attempt" if first.attempts == 1 else f"{first.attempts} attempts"
    return (
        f"message {first.receipt.position} of session {first.receipt.session_id}{more} died "
        f"after {attempts}: {error}"
    )


class _AtOnce:
    """A retry without a delay."""

    def delay(self, attempt: int, error: BaseException | None = None) -> float:
        return 0.0


async def drain(
    db: SessionsDB,
    handler: Handler,
    *,
    allow_dead: bool = False,
    timeout: float = 30.0,
    concurrency: int = 1,
    batch: int = 1,
    max_attempts: int = 5,
    index_search: bool = False,
) -> int:
    """Run ``handler`` until no message of the handle's namespace waits. Return the number of turns
    that were committed.

    One turn runs at a time by default, so the order of turns is the same in each run of a test. A
    failed attempt is repeated at once: no backoff, and no ``retry_after``. Messages behind an open
    question and schedules that are not due are left.

    Raises ``MessageDied`` if a message died, unless ``allow_dead`` is true. Raises ``TimeoutError``
    after ``timeout`` seconds of real time, and names the sessions whose turns still run. The other
    arguments are those of ``SessionsDB.worker``.
    """
    if not isinstance(db, SessionsDB):
        raise InvalidArgument(
            "drain takes a sessionsdb.SessionsDB; use drain_blocking for a handle of "
            "sessionsdb.sync"
        )
    watched = _Watched(checked_handler(handler))
    worker = db.worker(
        watched.handler,
        concurrency=concurrency,
        batch=batch,
        max_attempts=max_attempts,
        retry=_AtOnce(),
        index_search=index_search,
        poll_interval=0.1,
        name="drain",
    )
    try:
        async with asyncio.timeout(timeout):
            committed = await worker.run_until_idle()
    except TimeoutError:
        raise TimeoutError(f"not idle after {timeout:g} s: {watched.describe()}") from None
    if worker.died and not allow_dead:
        raise MessageDied(await db.broker.dead_letters(limit=worker.died)) from watched.error
    return committed


def drain_blocking(
    db: sync.SessionsDB,
    handler: Handler,
    *,
    allow_dead: bool = False,
    timeout: float = 30.0,
    concurrency: int = 1,
    batch: int = 1,
    max_attempts: int = 5,
    index_search: bool = False,
) -> int:
    """Do the same as ``drain`` for a handle of ``sessionsdb.sync``, and block until the end.

    The handler is asynchronous, and runs in the thread of the handle. There it can't call the
    blocking handle itself: its turn has ``send``, ``spawn`` and ``history``.
    """
    if not isinstance(db, sync.SessionsDB):
        raise InvalidArgument(
            "drain_blocking takes a sessionsdb.sync.SessionsDB; await drain for a "
            "sessionsdb.SessionsDB"
        )
    return sync.run_in_loop(
        db,
        lambda handle: drain(
            handle,
            handler,
            allow_dead=allow_dead,
            timeout=timeout,
            concurrency=concurrency,
            batch=batch,
            max_attempts=max_attempts,
            index_search=index_search,
        ),
    )


class _Watched:
    """A handler that remembers its last exception, and the sessions of its running turns."""

    def __init__(self, handler: Handler) -> None:
        self.error: Exception | None = None
        self._interrupted: set[str] = set()

        # With the name and the marks of the handler, for the logs of the worker.
        @wraps(handler, updated=())
        async def watched(turn: Turn) -> HandlerResult:
            try:
                answer: HandlerResult = await require_awaitable(handler, handler(turn))
            except asyncio.CancelledError:
                self._interrupted.add(turn.session.id)
                raise
            except BrokenHandler:
                raise
            except Exception as error:
                self.error = error
                raise
            return answer

        self.handler: Handler = watched

    def describe(self) -> str:
        if self._interrupted:
            sessions = ", ".join(sorted(self._interrupted))
            return f"the handler still runs for session {sessions}"
        return "no turn runs here; another worker may hold a session, or the database is away"
