"""Waiting for messages to be finished: many waiters, one query.

No connection is held while anything waits. All waiters of a database share one poller, which
asks for all of their messages at once: at a hint, and at an interval in case a hint was lost.
What waiters ask for when they come and when they give up is gathered in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from functools import partial
from uuid import uuid4

from sessionsdb.engine.batcher import Batcher
from sessionsdb.engine.notifier import Signal
from sessionsdb.engine.tasks import TaskGroup, backoff_seconds
from sessionsdb.errors import SessionsDBError, UnknownReceipt
from sessionsdb.operations import outcomes, wait_graph
from sessionsdb.operations.outcomes import MessageKey
from sessionsdb.runtime.database_access import DONE, DatabaseAccess
from sessionsdb.types import Outcome

log = logging.getLogger("sessionsdb.waits")

POLL_SECONDS = 0.5
"""How often finished messages are looked for when no hint comes."""

MAX_POLL_SECONDS = 5.0
"""… and while the database fails, at most so far apart."""

ENTRY_SECONDS = 20.0
"""How long a session's wait is written down for at a time."""

ENTRY_GRACE_SECONDS = 5.0
"""How long the entry lives beyond that, so that it is renewed before it runs out."""

PAUSE_SECONDS = 0.002
"""After a look: hints that come in quick succession are answered together."""


class OutcomeWaiter:
    """The waiters of one database."""

    def __init__(self, database: DatabaseAccess) -> None:
        self._database = database
        self._waiting: dict[MessageKey, set[asyncio.Future[Outcome]]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._look_now = Signal()
        self._asked: Batcher[MessageKey, Outcome] = Batcher(self._ask)
        self._tasks = TaskGroup()

    async def wait(self, ticket: MessageKey, timeout: float) -> Outcome:
        """The outcome of a message when it is final, or as it is at the timeout (seconds).

        Raises ``UnknownReceipt``. A cancelled wait cancels nothing but itself.
        """
        now = await self._asked.submit(ticket)
        if now.final or timeout <= 0:
            return now
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(ticket, set()).add(answer)
        if self._poller is None:
            self._look_now = Signal()
            self._poller = asyncio.create_task(self._poll())
        self._look_now.set()  # it may have been finished since the read above
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            return await self._asked.submit(ticket)
        finally:
            waiters = self._waiting.get(ticket, set())
            waiters.discard(answer)
            if not waiters:
                self._waiting.pop(ticket, None)

    async def wait_as(self, waiter: str, ticket: MessageKey, timeout: float) -> Outcome:
        """``wait``, on behalf of a session: nobody may begin to wait for it in a circle meanwhile.

        Raises ``CircularWait``, and ``UnknownReceipt``. That the session waits is written down for
        a short time and again and again, so that a process that dies holds nobody up for long.
        """
        wait_id = uuid4().hex
        deadline = time.monotonic() + timeout
        outcome = await self._asked.submit(ticket)
        if outcome.final or timeout <= 0:
            return outcome
        try:
            while not outcome.final and (left := deadline - time.monotonic()) > 0:
                seconds = min(left, ENTRY_SECONDS)
                entry = wait_graph.Wait(waiter, wait_id, ticket, seconds + ENTRY_GRACE_SECONDS)
                await self._database.write(partial(wait_graph.add_wait, wait=entry), wakes=())
                outcome = await self.wait(ticket, seconds)
        finally:
            # By the side, so that it is done even if this task is being cancelled.
            leaving = self._tasks.start(self._leave(ticket[0], waiter, wait_id))
            await asyncio.shield(leaving)
        return outcome

    async def _leave(self, namespace: str, waiter: str, wait_id: str) -> None:
        with contextlib.suppress(SessionsDBError):  # else it runs out
            await self._database.write(
                partial(
                    wait_graph.remove_wait, namespace=namespace, waiter=waiter, wait_id=wait_id
                ),
                wakes=(),
            )

    async def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait((self._poller,))
            self._poller = None
        for ticket in list(self._waiting):
            for answer in self._waiting.pop(ticket):
                if not answer.done():
                    answer.set_exception(SessionsDBError("the database handle was closed"))
        await self._asked.drain()
        await self._tasks.drain()

    async def _poll(self) -> None:
        failures = 0
        try:
            async with self._database.notifier.subscribe(DONE, self._look_now) as signal:
                while self._waiting:
                    try:
                        await self._poll_once()
                    except SessionsDBError as error:  # the waiters have timeouts of their own
                        if failures == 0:
                            log.warning("can't look for finished messages, trying again: %s", error)
                        failures += 1
                        pause = backoff_seconds(failures, most=MAX_POLL_SECONDS)
                    else:
                        failures = 0
                        pause = POLL_SECONDS * random.uniform(0.8, 1.2)
                    await asyncio.sleep(PAUSE_SECONDS)
                    await signal.wait(pause)
        finally:
            self._poller = None

    async def _poll_once(self) -> None:
        tickets = list(self._waiting)
        found = await self._database.read(partial(outcomes.outcomes, tickets=tickets))
        for ticket in tickets:
            outcome = found.get(ticket)
            if outcome is not None and not outcome.final:
                continue
            for answer in self._waiting.pop(ticket, ()):
                if answer.done():
                    continue
                if outcome is None:
                    answer.set_exception(_unknown(ticket))
                else:
                    answer.set_result(outcome)

    async def _ask(self, tickets: list[MessageKey]) -> list[Outcome | SessionsDBError]:
        found = await self._database.read(partial(outcomes.outcomes, tickets=tickets))
        return [found.get(ticket) or _unknown(ticket) for ticket in tickets]


def _unknown(ticket: MessageKey) -> UnknownReceipt:
    _namespace, session_id, position = ticket
    return UnknownReceipt(session_id, position)
