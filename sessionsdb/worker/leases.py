"""Renew the leases of a worker in time, and cancel the turns of leases that are lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from itertools import chain
from typing import Any

from sessionsdb.engine.notifier import Digests, SubjectSignal
from sessionsdb.errors import SessionsDBError
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.operations.keys import Fence, SessionKey, digest_of
from sessionsdb.operations.stop_reasons import find_stopped
from sessionsdb.runtime.database_access import STOP
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry.observed import TurnResult
from sessionsdb.types import StoppedBy

log = logging.getLogger("sessionsdb.worker")

MARGIN = 0.1
"""The last part of a lease, in which this worker no longer runs its turn. So the turn is cancelled
before the database gives the session to another worker."""

REASONS: dict[StoppedBy, str] = {
    "cancel": "its message was cancelled",
    "interrupt": "its session was interrupted",
    "end": "its session ended or was deleted",
    "lease": "its lease is no longer ours: it expired",
}
"""The reason of each ``stopped_by``, for logs."""

PREVIOUS_TURN_SECONDS = 5.0
"""How long a turn waits for the stopped handler of the session's turn before it. After that the two
overlap, and the fence keeps the stopped one from a commit."""

MAX_WAITING = 4
"""How many renewals of a worker wait for locked mailboxes at once, each on a connection of its own.
Those of more are tried again with the next heartbeat."""

STOP_PAUSE_SECONDS = 0.02
"""The pause after a look for stopped turns. On SQLite every commit of another process is a hint."""


class HeldLease:
    """A lease that this worker holds, and the task that runs its turn."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.key = lease.key
        self.task: asyncio.Task[TurnResult | None]
        """The task that runs the handler. Usually it finishes the turn too."""
        self._on_done: Callable[[HeldLease], None]
        self.deadline = 0.0
        """When the turn is cancelled unless the lease was renewed, by the monotonic clock of this
        process."""
        self.cancel_reason: str | None = None
        """Why the turn was cancelled, or ``None``."""
        self.stopped_by: StoppedBy | None = None
        """The same for the handler. It is set before the handler is cancelled."""
        self.slot: asyncio.Future[bool] | None = None
        """Done when the turn may begin (true), or when its lease is to be given back (false).
        ``None``: the turn begins at once."""
        self.has_begun = False
        """Whether the turn no longer waits for its slot, or for the turn before it. A turn whose
        task is cancelled earlier gives its session back, without an attempt."""
        self.is_given_back = False
        """Whether the session was given back because the task was cancelled. A second cancellation
        lets the lease run out."""
        self.exit: BaseException | None = None
        """The error that ends the worker: the handler raised ``SystemExit`` or
        ``KeyboardInterrupt``, or is not async."""
        self.handler_done = False
        """From here on the turn is not cancelled: the epoch in the database decides whether it
        commits."""

    def start(
        self,
        turn: Coroutine[Any, Any, TurnResult | None],
        name: str,
        on_done: Callable[[HeldLease], None],
    ) -> None:
        """Run the turn in a task, and call ``on_done`` when the last task of the turn has ended."""
        self._on_done = on_done
        self._run(turn, name)

    def hand_over(self, rest: Coroutine[Any, Any, TurnResult | None]) -> None:
        """Run the rest of the turn in a new task, for which ``on_done`` waits instead."""
        self._run(rest, self.task.get_name())

    def _run(self, work: Coroutine[Any, Any, TurnResult | None], name: str) -> None:
        self.task = asyncio.create_task(work, name=name)
        self.task.add_done_callback(self._on_task_done)

    def note_task(self) -> None:
        """Note the running task. An eager task runs its first step before ``start`` knows it."""
        task = asyncio.current_task()
        assert task is not None
        self.task = task

    def _on_task_done(self, task: asyncio.Task[TurnResult | None]) -> None:
        if task is self.task:
            self._on_done(self)

    def give_back_once(self) -> bool:
        """Return whether the session of this turn is to be given back now: the turn has not begun,
        and this is the first call."""
        if self.has_begun or self.is_given_back:
            return False
        self.is_given_back = True
        return True

    @property
    def was_stopped(self) -> bool:
        """Whether the turn was stopped by the wish of a caller. Its lease has ended then."""
        return self.stopped_by not in (None, "lease")

    def cancel_turn(self, stopped_by: StoppedBy, reason: str | None = None) -> None:
        """Cancel the turn, unless its handler is done. A cancelled turn commits nothing."""
        if self.cancel_reason is None and not self.handler_done:
            self.cancel_reason = reason or REASONS[stopped_by]
            self.stopped_by = stopped_by
            self.task.cancel(self.cancel_reason)


class LeaseKeeper:
    """The leases that one worker holds."""

    def __init__(self, database: OpenDatabase, worker_id: str, lease_seconds: float) -> None:
        self._database = database
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._alarm: asyncio.TimerHandle | None = None
        self.held: dict[SessionKey, HeldLease] = {}
        self.superseded: list[HeldLease] = []
        """Leases that this worker has lost while their turns have not ended yet: it has been given
        the sessions again. Each still takes a slot."""
        self._waiting: dict[HeldLease, asyncio.Task[None]] = {}
        """The renewals that wait for locked mailboxes."""

    def __len__(self) -> int:
        """How many turns have not ended, also those that wait for a slot."""
        return len(self.held) + len(self.superseded)

    def __iter__(self) -> Iterator[HeldLease]:
        return chain(self.held.values(), self.superseded)

    def add(self, held: HeldLease, requested_at: float) -> None:
        """Keep a lease that was claimed by a request of this monotonic time."""
        previous = self.held.get(held.key)
        if previous is not None and previous is not held:
            self.superseded.append(previous)
        self.held[held.key] = held
        self._extend(held, requested_at)

    def remove(self, held: HeldLease) -> None:
        """Forget a lease whose turn is over."""
        if self.held.get(held.key) is held:
            del self.held[held.key]
        elif held in self.superseded:
            self.superseded.remove(held)

    async def stop_previous(self, held: HeldLease) -> None:
        """Stop the superseded turns of a session. A turn whose handler is done ends by itself."""
        running = [
            one
            for one in self.superseded
            if one.key == held.key and one.cancel_reason is None and not one.handler_done
        ]
        if running:
            await self._cancel_lost(running)

    async def wait_for_previous(self, held: HeldLease) -> None:
        """Wait until the superseded turns of a session have ended.

        After ``PREVIOUS_TURN_SECONDS`` this returns although one of them still runs.
        """
        previous = [one for one in self.superseded if one.key == held.key]
        deadline = time.monotonic() + PREVIOUS_TURN_SECONDS
        # In a loop, because the end of a turn may be handed over to another task.
        while tasks := [one.task for one in previous if not one.task.done()]:
            left = deadline - time.monotonic()
            if left <= 0:
                log.warning(
                    "the stopped turn of session %s still runs after %.0f s, the next one begins",
                    held.lease.session_id,
                    PREVIOUS_TURN_SECONDS,
                )
                return
            await asyncio.wait(tasks, timeout=left)

    async def renew_forever(self) -> None:
        """Renew all leases every third of a lease, until cancelled.

        A failed try is repeated after a thirtieth: another third later the leases are given up.
        """
        pause = self._lease_seconds / 3
        while True:
            await asyncio.sleep(pause)
            renewed = await self._renew()
            pause = self._lease_seconds / (3 if renewed else 30)

    async def watch_stops_forever(self) -> None:
        """Cancel turns whose leases were taken away, soon after the hint, until cancelled.

        A lost hint costs no more than a heartbeat's time. A hint about sessions of other workers
        costs this worker no look. Hints in quick succession share a look.
        """
        signal = SubjectSignal(self._runs_any)
        async with self._database.notifier.subscribe(STOP, signal) as hint:
            while True:
                await hint.wait(None)
                # A turn whose handler is done can't be stopped any more. Its commit ends its lease.
                running = [held for held in self._running() if not held.handler_done]
                if running:
                    await self._look_for_stops(running)
                    await asyncio.sleep(STOP_PAUSE_SECONDS)

    def close(self) -> None:
        """Stop the alarm, and wait for no lock any more."""
        for waiting in self._waiting.values():
            waiting.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _extend(self, held: HeldLease, requested_at: float) -> None:
        # The database counts from a moment after the request, so the deadline is on the safe side.
        # A renewal that waited for a lock may be older than the last one.
        deadline = requested_at + self._lease_seconds * (1 - MARGIN)
        held.deadline = max(held.deadline, deadline)
        self._set_alarm(held.deadline)

    def _set_alarm(self, deadline: float) -> None:
        """Check the deadlines at ``deadline``, or earlier.

        One alarm serves all leases, and most turns end before it rings. Setting and cancelling a
        timer for each lease takes 5 µs a turn, comparing with the shared one 0.7 µs.
        """
        if self._alarm is not None:
            if self._alarm.when() <= deadline:
                return
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_at(deadline, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._alarm = None
        now = asyncio.get_running_loop().time()
        for held in list(self.held.values()):
            if held.deadline <= now:
                held.cancel_turn("lease", "its lease ran out before it could be renewed")
            else:
                self._set_alarm(held.deadline)

    def _runs_any(self, digests: Digests) -> bool:
        # The digests of the held sessions are not kept: a hint is rarer than a turn.
        return any(digest_of(key) in digests for key in self.held)

    def _running(self) -> list[HeldLease]:
        return [held for held in self.held.values() if held.cancel_reason is None]

    async def _look_for_stops(self, running: list[HeldLease]) -> None:
        await self._cancel_if_lost(running)

    async def _cancel_if_lost(self, running: list[HeldLease]) -> list[HeldLease]:
        """Cancel turns whose leases are lost, and return the leases that are held for certain."""
        try:
            async with asyncio.timeout(self._lease_seconds / 3):
                fences = await self._database.read(
                    partial(mailbox.held_fences, worker=self._worker_id)
                )
        except (SessionsDBError, TimeoutError) as error:
            log.warning("can't look for lost leases, the next heartbeat does: %s", error)
            return []
        # A reason takes longer to read than a turn to commit, and on SQLite a busy process looks 50
        # times a second. So leases that the worker's own commits have ended since are left out.
        await self._cancel_lost(
            [one for one in running if one.lease.fence not in fences and not one.handler_done]
        )
        return [one for one in running if one.lease.fence in fences]

    async def _cancel_lost(self, lost: list[HeldLease]) -> None:
        """Cancel turns whose leases are lost for certain, with the reason if it can be read."""
        stopped: dict[Fence, StoppedBy] = {}
        if lost:
            try:
                stopped = await self._find_stopped(lost)
            except SessionsDBError as error:
                log.warning("can't read the reasons of stopped turns (%d): %s", len(lost), error)
        for held in lost:
            held.cancel_turn(stopped.get(held.lease.fence, "lease"))

    def _find_stopped(self, leases: list[HeldLease]) -> Coroutine[Any, Any, dict[Fence, StoppedBy]]:
        return self._database.read(
            partial(find_stopped, worker=self._worker_id, leases=[held.lease for held in leases])
        )

    async def _renew(self) -> bool:
        """Renew the leases of the turns that run. Return whether the database answered."""
        running = self._running()
        if not running:
            return True
        requested_at = time.monotonic()
        try:
            async with asyncio.timeout(self._lease_seconds / 3):
                renewed = await self._heartbeat(running)
        except (SessionsDBError, TimeoutError) as error:
            log.warning("can't renew leases (%d), trying again: %s", len(running), error)
            return False
        passed_over = []
        for held in running:
            if self.held.get(held.key) is not held:
                continue  # its turn ended during the heartbeat
            if held.key in renewed:
                self._extend(held, requested_at)
            else:
                passed_over.append(held)
        if passed_over:
            for held in await self._cancel_if_lost(passed_over):
                self._renew_behind_lock(held)
        return True

    def _heartbeat(
        self, leases: list[HeldLease], *, wait_for_locks: bool = False
    ) -> Coroutine[Any, Any, set[SessionKey]]:
        return self._database.write_autocommit(
            partial(
                mailbox.heartbeat,
                worker=self._worker_id,
                fences=[held.lease.fence for held in leases],
                lease_seconds=self._lease_seconds,
                wait_for_locks=wait_for_locks,
            ),
            wakes=(),
        )

    def _renew_behind_lock(self, held: HeldLease) -> None:
        """Have a lease renewed as soon as the lock of its mailbox is free."""
        if held not in self._waiting and len(self._waiting) < MAX_WAITING:
            self._waiting[held] = asyncio.create_task(self._renew_when_free(held))

    async def _renew_when_free(self, held: HeldLease) -> None:
        requested_at = time.monotonic()
        try:
            renewed = await self._heartbeat([held], wait_for_locks=True)
        except SessionsDBError as error:
            log.warning("can't renew the lease of session %s: %s", held.lease.session_id, error)
            return
        finally:
            del self._waiting[held]
        if self.held.get(held.key) is not held:
            return
        if held.key in renewed:
            self._extend(held, requested_at)
        else:
            await self._cancel_lost([held])
