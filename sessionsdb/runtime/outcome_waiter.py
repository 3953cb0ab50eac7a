"""Wait for the outcomes of messages: many waiting callers, one query.

No connection is held while a caller waits. All callers of a database share one poller. After a
wake-up that names sessions it reads the outcomes of their messages in one query. After any other
wake-up it reads those of all messages, and also at an interval, because a wake-up may be lost. The
reads at the start of a wait and at its timeout are batched too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from functools import partial
from uuid import uuid4

from sessionsdb import operations
from sessionsdb.engine.batcher import Batcher, copy_of
from sessionsdb.engine.notifier import Digests, Signal
from sessionsdb.engine.storage_errors import ONE_IS_BAD
from sessionsdb.engine.tasks import BackgroundTasks, backoff_seconds
from sessionsdb.errors import SessionsDBError, StorageError, UnknownReceipt
from sessionsdb.operations.keys import MessageKey, digest_of
from sessionsdb.runtime.database_access import DONE, DatabaseAccess
from sessionsdb.types import Outcome
from sessionsdb.types.base import own_copy

log = logging.getLogger("sessionsdb.waits")

POLL_SECONDS = 0.5
"""The interval of polls when no wake-up comes."""

MAX_POLL_SECONDS = 5.0
"""The longest pause between polls while the database fails."""

ENTRY_SECONDS = 20.0
"""A session that waits is recorded for this time, then again."""

ENTRY_GRACE_SECONDS = 5.0
"""A record lives this much longer, so that it is renewed before it expires."""

REMOVAL_SECONDS = 1.0
"""At most this long a wait that is over waits until its record is deleted."""

PAUSE_SECONDS = 0.002
"""The pause after a poll, so that wake-ups in quick succession share the next one."""

LONGEST_PAUSE_SECONDS = 0.02
"""The pause grows up to this while polls find nothing: anybody may send wake-ups without end."""

PAUSE_SECONDS_A_WAIT = 0.000_01
"""The pause for each message that a poll looked for. It takes 2 µs of this process for each."""

LAST_READ_SECONDS = 10.0
"""At most this long the read at the end of a wait takes. A lock that others hold may block it."""

FEW = 100
"""So many messages are all looked for at each notification. The look also finds the messages that
were finished since, which saves the next one: 4 % of a send and wait of 64 callers on SQLite."""


class _Waiters:
    """The messages that are waited for, each with its waiting callers."""

    def __init__(self) -> None:
        self.by_message: dict[MessageKey, set[asyncio.Future[Outcome]]] = {}
        self.by_digest: dict[str, set[MessageKey]] = {}
        """The messages of each session, by the name that the session has in notifications."""

    def add(self, message: MessageKey, final: asyncio.Future[Outcome]) -> None:
        self.by_message.setdefault(message, set()).add(final)
        self.by_digest.setdefault(digest_of(message[:2]), set()).add(message)

    def discard(self, message: MessageKey, final: asyncio.Future[Outcome]) -> None:
        waiters = self.by_message.get(message, set())
        waiters.discard(final)
        if not waiters:
            self.pop(message)

    def pop(self, message: MessageKey) -> set[asyncio.Future[Outcome]]:
        """Remove a message, and return its callers."""
        digest = digest_of(message[:2])
        of_session = self.by_digest.get(digest, set())
        of_session.discard(message)
        if not of_session:
            self.by_digest.pop(digest, None)
        return self.by_message.pop(message, set())


class _Touched(Signal):
    """A signal that is set by notifications that may concern a waiting caller.

    It remembers the messages to look for. So with thousands of waiting callers a finished message
    costs one look-up, and not thousands.
    """

    def __init__(self, waiters: _Waiters) -> None:
        super().__init__()
        self._waiters = waiters
        self._digests: set[str] = set()
        self._is_any = False

    def hint(self, digests: Digests | None) -> None:
        if digests is None:
            self._is_any = True
        else:
            concerned = digests & self._waiters.by_digest.keys()
            if not concerned:
                return
            self._digests |= concerned
        self.set()

    def take(self) -> list[MessageKey] | None:
        """Return the messages that were concerned since the last call, ``None`` for all."""
        digests, is_any = self._digests, self._is_any
        self._digests, self._is_any = set(), False
        if is_any:
            return None
        by_digest = self._waiters.by_digest
        return [message for digest in digests for message in by_digest.get(digest, ())]


class OutcomeWaiter:
    """The callers that wait for outcomes in one database."""

    def __init__(self, database: DatabaseAccess) -> None:
        self._database = database
        self.waiters = _Waiters()
        self._poller: asyncio.Task[None] | None = None
        self._reads: Batcher[MessageKey, Outcome] = Batcher(self._read)
        self.first_looks: Batcher[MessageKey, Outcome | None] = Batcher(self._look)
        self._tasks = BackgroundTasks()

    async def wait(self, message: MessageKey, timeout: float) -> Outcome:
        """Wait until a message is finished, and return its outcome.

        At the timeout, in seconds, this returns the outcome of that moment. Raises
        ``UnknownReceipt``, and ``StorageError`` if that can't be read in ``LAST_READ_SECONDS``. A
        cancelled wait leaves the message as it is.
        """
        await self._database.ready()
        if timeout <= 0:
            return await self._outcome(message)
        final: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.waiters.add(message, final)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(timeout):
                # The poller listens before this look begins. So a message that is finished behind
                # the look wakes the poller, and the wait needs no poll at its start.
                finished = await self.first_looks.submit(message)
                return await final if finished is None else finished
        except TimeoutError:
            return await self._outcome(message)
        finally:
            if final.done() and not final.cancelled():
                final.exception()  # asyncio logs an exception that nobody has asked for
            self.waiters.discard(message, final)

    async def wait_as(self, waiter: str, message: MessageKey, timeout: float) -> Outcome:
        """``wait`` on behalf of the session ``waiter``. Meanwhile no session may begin a wait that
        closes a circle with this one.

        The wait is recorded in the database for a short time, again and again. So the record of a
        dead process expires soon. Raises ``CircularWait``, ``UnknownReceipt`` and ``StorageError``.
        """
        await self._database.ready()
        wait_id = uuid4().hex
        deadline = time.monotonic() + timeout
        outcome = await self._outcome(message, within=max(timeout, LAST_READ_SECONDS))
        if outcome.final or timeout <= 0:
            return outcome
        adding: asyncio.Task[None] | None = None
        try:
            while not outcome.final and (left := deadline - time.monotonic()) > 0:
                seconds = min(left, ENTRY_SECONDS)
                entry = operations.wait_graph.Wait(
                    waiter, wait_id, message, seconds + ENTRY_GRACE_SECONDS
                )
                add = partial(operations.wait_graph.add_wait, wait=entry)
                # In a task of its own: the write goes on when this wait is over, and the removal
                # has to come after it.
                adding = self._tasks.start(self._database.write(add, wakes=()))
                try:
                    async with asyncio.timeout(left):  # a lock that others hold ends no timeout
                        await asyncio.shield(adding)
                except TimeoutError:
                    return await self._outcome(message)
                left = deadline - time.monotonic()
                outcome = await self.wait(message, min(left, ENTRY_SECONDS))
        finally:
            # In a task of its own, which a cancelled caller does not cancel.
            removal = self._tasks.start(self._remove_wait(message[0], waiter, wait_id, adding))
            await asyncio.wait((removal,), timeout=REMOVAL_SECONDS)
        return outcome

    async def close(self) -> None:
        """Fail all waits that are under way."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait((self._poller,))
            self._poller = None
        for message in list(self.waiters.by_message):
            for final in self.waiters.pop(message):
                if not final.done():
                    final.set_exception(SessionsDBError("the database handle was closed"))
        await self._reads.drain()
        await self.first_looks.drain()
        await self._tasks.drain()

    async def _outcome(self, message: MessageKey, within: float | None = None) -> Outcome:
        """Return the outcome of this moment. Raises ``StorageError`` if that takes too long."""
        seconds = LAST_READ_SECONDS if within is None else within
        try:
            async with asyncio.timeout(seconds):
                return await self._reads.submit(message)
        except TimeoutError:
            raise StorageError(f"the database has not answered for {seconds:g} s") from None

    async def _remove_wait(
        self, namespace: str, waiter: str, wait_id: str, adding: asyncio.Task[None] | None
    ) -> None:
        if adding is not None:
            await asyncio.wait((adding,))
        remove = partial(
            operations.wait_graph.remove_wait, namespace=namespace, waiter=waiter, wait_id=wait_id
        )
        with contextlib.suppress(SessionsDBError):  # otherwise the record expires
            await self._database.write(remove, wakes=())

    async def _poll(self) -> None:
        failures = fruitless = 0
        touched = _Touched(self.waiters)
        all_messages = self.waiters.by_message
        next_full_look = _after(POLL_SECONDS)
        try:
            async with self._database.notifier.subscribe(DONE, touched):
                while all_messages:
                    await touched.wait(max(0.0, next_full_look - time.monotonic()))
                    named = touched.take()
                    is_full = (
                        named is None
                        or failures > 0
                        or len(all_messages) <= FEW
                        or time.monotonic() >= next_full_look
                    )
                    messages = list(all_messages) if named is None or is_full else named
                    pause_of_look = PAUSE_SECONDS_A_WAIT * len(messages)
                    try:
                        fruitless = 0 if await self._poll_once(messages) else fruitless + 1
                    except SessionsDBError as error:  # the waits go on until their timeouts
                        if failures == 0:
                            log.warning("can't look for finished messages, trying again: %s", error)
                        failures += 1
                        pause = backoff_seconds(failures, max_seconds=MAX_POLL_SECONDS)
                        next_full_look = _after(pause)
                    else:
                        failures = 0
                        if is_full:
                            next_full_look = _after(pause_of_look + POLL_SECONDS)
                    if all_messages:
                        pause = min(PAUSE_SECONDS * max(1, fruitless), LONGEST_PAUSE_SECONDS)
                        await asyncio.sleep(max(pause, pause_of_look))
        finally:
            self._poller = None

    async def _poll_once(self, messages: list[MessageKey]) -> bool:
        """Answer the waits for finished ones of these messages. Return whether there were any."""
        if not messages:
            return False
        try:
            found = await self._finished(messages)
        except ONE_IS_BAD as error:
            return await self._poll_apart(messages, error)
        for message, outcome in found.items():
            for final in self.waiters.pop(message):
                if final.done():
                    continue
                if outcome is None:
                    final.set_exception(_unknown_receipt(message))
                else:
                    final.set_result(own_copy(outcome))
        return bool(found)

    async def _poll_apart(self, messages: list[MessageKey], error: Exception) -> bool:
        """Look for messages of which one can't be read. Only the waits for that one fail."""
        if len(messages) > 1:
            half = len(messages) // 2
            parts = (messages[:half], messages[half:])
            return any([await self._poll_once(part) for part in parts])
        for final in self.waiters.pop(messages[0]):
            if not final.done():
                final.set_exception(copy_of(error))
        return True

    async def _read(self, messages: list[MessageKey]) -> list[Outcome | SessionsDBError]:
        found = await self._database.read(partial(operations.outcomes.outcomes, receipts=messages))
        return [own_copy(found.get(message)) or _unknown_receipt(message) for message in messages]

    async def _look(self, messages: list[MessageKey]) -> list[Outcome | SessionsDBError | None]:
        found = await self._finished(messages)
        return [
            None if message not in found else own_copy(found[message]) or _unknown_receipt(message)
            for message in messages
        ]

    async def _finished(self, messages: list[MessageKey]) -> dict[MessageKey, Outcome | None]:
        return await self._database.read(partial(operations.outcomes.finished, receipts=messages))


def _after(seconds: float) -> float:
    """Return the time ``time.monotonic()`` after about so many seconds.

    The processes of a database don't all look at the same time.
    """
    return time.monotonic() + seconds * random.uniform(0.8, 1.2)


def _unknown_receipt(message: MessageKey) -> UnknownReceipt:
    _namespace, session_id, position = message
    return UnknownReceipt(session_id, position)
