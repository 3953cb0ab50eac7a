"""The loop of a worker: claim sessions, run their turns, release leases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from sessionsdb.engine.keyed_batcher import SPILL_AT
from sessionsdb.engine.notifier import Signal
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError, StorageError
from sessionsdb.operations import mailbox
from sessionsdb.operations.inbox_types import Due, Lease
from sessionsdb.operations.row_locks import SessionKey
from sessionsdb.runtime.database_access import DONE, WORK
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry import spans
from sessionsdb.telemetry.load_gauges import LoadSource
from sessionsdb.worker.leases import LeaseKeeper
from sessionsdb.worker.options import WorkerOptions
from sessionsdb.worker.turn import handler_name
from sessionsdb.worker.turn_runner import HeldLease, TurnRunner
from sessionsdb.worker.watchdog import Watchdog

log = logging.getLogger("sessionsdb.worker")

BLOCKED_SECONDS = 1.0
"""A handler that keeps the event loop longer than this is warned about."""

LEASES_UNTIL_FORGOTTEN = 10
"""After so many times its length a lease that was left to expire has done so."""

RELEASE_SECONDS = 5.0
"""How long a turn that was cancelled by ``stop`` may take to clean up before its lease goes."""


class WorkerLoop:
    """One run of a worker, under one id."""

    def __init__(self, database: OpenDatabase, worker_id: str, options: WorkerOptions) -> None:
        self.id = worker_id
        self._options = options
        self._database = database
        self._turn_runner = TurnRunner(
            database,
            worker_id,
            options.handler,
            max_attempts=options.max_attempts,
            retry=options.retry,
            turn_timeout=options.turn_timeout,
        )
        self._lease_keeper = LeaseKeeper(self._database, worker_id, options.lease_seconds)
        self._wake = Signal()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stop_by = float("inf")
        self._committed = 0
        self._poll_at = 0.0
        self._one_writer = database.engine.dialect.name == "sqlite"
        self._answer_lost = False
        self._turn_ended = False
        self._claiming: asyncio.Task[list[Lease]] | None = None
        self._abandoned_leases: dict[SessionKey, float] = {}
        """The sessions whose turns ended without the database hearing of it, and when they did."""

    async def work(self, *, until_idle: bool) -> int:
        log.info("worker %s starts", self.id)
        try:
            async with self._background_tasks():
                try:
                    await self._loop(until_idle=until_idle)
                    await self._finish()
                finally:
                    await asyncio.shield(self._release_all())
        finally:
            self._stopped.set()
            log.info("worker %s stops after %d turns", self.id, self._committed)
        return self._committed

    async def stop(self, grace: float) -> None:
        self._stop_by = min(self._stop_by, time.monotonic() + grace)
        self._stopping.set()
        self._wake.set()
        await self._stopped.wait()

    @asynccontextmanager
    async def _background_tasks(self) -> AsyncIterator[None]:
        """What goes on beside the turns: hints, heartbeats, the watchdog."""
        watchdog = Watchdog(seconds=min(BLOCKED_SECONDS, self._options.lease_seconds / 3))
        watchdog.start()
        keeping = asyncio.create_task(self._lease_keeper.keep(), name="heartbeats")
        unobserved = spans.instruments.observe(LoadSource(self._database, self._options.namespaces))
        try:
            async with self._database.notifier.subscribe(WORK, self._wake):
                yield
        finally:
            unobserved()
            self._lease_keeper.close()
            keeping.cancel()
            await asyncio.wait((keeping,))
            await asyncio.to_thread(watchdog.stop)

    # ---- the loop ----------------------------------------------------------------------------

    async def _loop(self, *, until_idle: bool) -> None:
        failures = 0
        hinted = True
        while not self._stopping.is_set():
            try:
                idle = await self._poll_once(hinted)
            except StorageError as error:
                failures += 1
                pause = backoff_seconds(failures)
                log.warning("the database fails, trying again in %.1f s: %s", pause, error)
                await self._wait(pause)
                hinted = True
                continue
            failures = 0
            if until_idle and idle:
                return
            hinted = await self._wait(self._poll_at - time.monotonic())

    async def _poll_once(self, hinted: bool) -> bool:
        """Claim what there is for the free slots; whether there is nothing left to do at all.

        A hint, or the end of a turn, is followed by a claim at once. Otherwise one cheap query
        asks first whether there is anything: a message, a backoff that is over, or a lease that
        has expired. So does an idle worker on SQLite: hints there are of any commit, and a claim
        takes the lock that writers wait for.
        """
        if self._answer_lost:
            await self._release_unknown()
        trusted = self._turn_ended or bool(self._lease_keeper.held) or not self._one_writer
        self._turn_ended = False
        if hinted and trusted and time.monotonic() < self._poll_at:
            await self._claim()
            if self._lease_keeper.held:
                return False
        due = await self._due()
        if due.in_seconds == 0:
            await self._wake_and_reap()
        if due.ready or due.in_seconds == 0:
            await self._claim()
            return False
        return not self._lease_keeper.held and due.in_seconds is None

    def _free(self) -> int:
        return self._options.concurrency - len(self._lease_keeper.held)

    async def _wait(self, seconds: float) -> bool:
        """Until a hint, the end of a turn, or the timeout; false for the timeout."""
        return await self._wake.wait(max(0.0, seconds))

    async def _due(self) -> Due:
        due = await self._database.read(
            partial(mailbox.next_due, namespaces=self._options.namespaces)
        )
        # A fleet that was started together must not ask together.
        pause = self._options.poll_interval * random.uniform(0.8, 1.2)
        if due.in_seconds is not None:
            # What is due but locked by another worker is not asked for without a pause.
            pause = min(pause, max(due.in_seconds, 0.02))
        self._poll_at = time.monotonic() + pause
        return due

    async def _wake_and_reap(self) -> None:
        """Make ready what a backoff or a dead worker held back."""
        namespaces = self._options.namespaces
        await self._database.write(partial(mailbox.wake, namespaces=namespaces), wakes=())
        reaped = await self._database.write(
            partial(mailbox.reap, namespaces=namespaces, max_attempts=self._options.max_attempts),
            wakes=lambda reaped: (DONE,) if reaped else (),  # a message may be dead now
        )
        if reaped:
            log.warning("took back %d expired leases", reaped)
            spans.record_expired_leases(reaped)

    async def _claim(self) -> None:
        """Fill the free slots, many of them by halves: then the turns go in two groups, and the
        database commits those of the one while the handlers of the other run."""
        at_once = self._options.concurrency
        if not self._one_writer:
            at_once = max(SPILL_AT, -(-at_once // 2))
        while (slots := min(self._free(), at_once)) > 0:
            if await self._claim_up_to(slots) < slots:
                break

    async def _claim_up_to(self, slots: int) -> int:
        """Claim so many sessions, if there are as many, and start their turns; how many."""
        asked = time.monotonic()
        self._claiming = asyncio.create_task(
            self._database.write_autocommit(
                partial(
                    mailbox.claim,
                    worker=self.id,
                    namespaces=self._options.namespaces,
                    slots=slots,
                    batch=self._options.batch,
                    lease_seconds=self._options.lease_seconds,
                ),
                wakes=(),
            )
        )
        self._answer_lost = True  # until it is here, also if we are cancelled now
        leases = await asyncio.shield(self._claiming)
        self._answer_lost = False
        if leases:
            spans.instruments.claims.add(len(leases))
        for lease in leases:
            self._start(HeldLease(lease), asked)
        return len(leases)

    async def _release_unknown(self) -> None:
        """Release what may have been leased to us by a claim whose answer was lost. Not what was
        handed to a turn: that attempt was made, and counts."""
        known = frozenset((*self._lease_keeper.held, *self._abandoned_leases))
        await self._database.write(
            partial(mailbox.release_unknown, worker=self.id, known=known), wakes=(WORK,)
        )
        self._answer_lost = False

    # ---- turns -------------------------------------------------------------------------------

    def _start(self, held: HeldLease, asked: float) -> None:
        name = handler_name(self._options.handler)
        held.task = asyncio.create_task(
            self._turn_runner.run(held), name=f"handler {name} for session {held.lease.session.id}"
        )
        self._lease_keeper.take(held, asked)
        self._abandoned_leases.pop(held.lease.key, None)
        held.task.add_done_callback(partial(self._ended, held))

    def _ended(self, held: HeldLease, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            return  # by us, and still to be released
        self._lease_keeper.drop(held)
        now = time.monotonic()
        if held.given_up is not None or now > held.until:
            long_ago = now - LEASES_UNTIL_FORGOTTEN * self._options.lease_seconds
            self._abandoned_leases = {
                key: ended for key, ended in self._abandoned_leases.items() if ended > long_ago
            } | {held.lease.key: now}
        if task.exception() is not None:
            log.error("a turn failed in an unforeseen way", exc_info=task.exception())
        elif task.result():
            self._committed += 1
        self._turn_ended = True
        self._wake.set()

    async def _finish(self) -> None:
        """Let turns come to their end, until the grace is over."""
        while self._lease_keeper.held and (left := self._stop_by - time.monotonic()) > 0:
            tasks = [held.task for held in self._lease_keeper.held.values()]
            # In steps, because a second stop may bring the end nearer.
            await asyncio.wait(tasks, timeout=min(left, 0.1))

    async def _release_all(self) -> None:
        """Cancel what still runs, and give its leases back."""
        if self._answer_lost and self._claiming is not None:
            await asyncio.wait((self._claiming,), timeout=RELEASE_SECONDS)
            with contextlib.suppress(SessionsDBError):
                await self._release_unknown()
        left = list(self._lease_keeper.held.values())
        cancelled = [held for held in left if not held.committing]
        for held in cancelled:
            held.task.cancel("the worker stops")
        if left:
            await asyncio.wait([held.task for held in left], timeout=RELEASE_SECONDS)
        released = [held for held in cancelled if held in self._lease_keeper.held.values()]
        if released:
            with contextlib.suppress(SessionsDBError):  # else they expire
                await self._database.write(
                    partial(
                        mailbox.release,
                        worker=self.id,
                        leases=[held.lease for held in released],
                    ),
                    wakes=(WORK,),
                )
        for held in left:
            self._lease_keeper.drop(held)
