"""The polling worker."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

from sessionsdb import arguments
from sessionsdb.engine import telemetry
from sessionsdb.engine.core import Core
from sessionsdb.engine.gauges import LoadSource
from sessionsdb.engine.runner import pause_after
from sessionsdb.engine.streams import FULL
from sessionsdb.engine.wakeups import Signal
from sessionsdb.errors import InvalidArgument, SessionsDBError, StorageError
from sessionsdb.operations import mailbox
from sessionsdb.operations.deliveries import Due, Lease
from sessionsdb.operations.locks import Key
from sessionsdb.worker.leases import LeaseKeeper
from sessionsdb.worker.retry import Backoff, Retry
from sessionsdb.worker.run import Held, Runs
from sessionsdb.worker.turn import Handler, named
from sessionsdb.worker.watchdog import Watchdog

log = logging.getLogger("sessionsdb.worker")

BLOCKED_SECONDS = 1.0
"""A handler that keeps the event loop longer than this is warned about."""

LEASES_UNTIL_FORGOTTEN = 10
"""After so many times its length a lease that was left to expire has done so."""

RELEASE_SECONDS = 5.0
"""How long a turn that was cancelled by ``stop`` may take to clean up before its lease goes."""


class Worker:
    """Drains the inboxes of one or more namespaces: claims sessions that have messages, runs the
    handler for each, and commits what it returns. Made by ``SessionsDB.worker``.

    Any number of workers, in any number of processes and hosts, share the work of a database. A
    session is run by one of them at a time, its messages in the order their sends committed.
    """

    def __init__(
        self,
        core: Core,
        handler: Handler,
        *,
        concurrency: int = 8,
        batch: int = 1,
        lease_seconds: float = 30.0,
        poll_interval: float = 1.0,
        max_attempts: int = 5,
        retry: Retry | None = None,
        turn_timeout: float | None = None,
        name: str | None = None,
        namespaces: Collection[str] | None,
    ) -> None:
        if not callable(handler) or inspect.isclass(handler):
            raise InvalidArgument(
                "handler must be an async function that takes a turn, not "
                f"{arguments.shown(handler)}"
            )
        if retry is not None and not callable(getattr(type(retry), "delay", None)):
            raise InvalidArgument(
                "retry must be a Retry, which has a method delay(attempt), not "
                f"{arguments.shown(retry)}"
            )
        self._core = core
        self._handler = handler
        self._concurrency = arguments.whole(concurrency, "concurrency", least=1)
        self._batch = arguments.whole(batch, "batch", least=1)
        self._lease_seconds = arguments.positive_seconds(lease_seconds, "lease_seconds")
        self._poll_interval = arguments.positive_seconds(poll_interval, "poll_interval")
        self._max_attempts = arguments.whole(max_attempts, "max_attempts", least=1)
        self._retry = Backoff() if retry is None else retry
        self._turn_timeout = (
            None
            if turn_timeout is None
            else arguments.positive_seconds(turn_timeout, "turn_timeout")
        )
        self._name = arguments.optional_name(name, "name")
        self._namespaces = namespaces
        self._round: _Round | None = None

    @property
    def id(self) -> str | None:
        """This worker's id while it runs: a new one at every start."""
        return None if self._round is None else self._round.id

    async def run(self) -> None:
        """Work until ``stop`` is called.

        A database that can't be reached is waited for. When the task that runs this is
        cancelled, turns are cancelled and their leases released at once.
        """
        await self._run(until_idle=False)

    async def run_until_idle(self) -> int:
        """Work until no message of these namespaces is unfinished anywhere, neither waiting for
        a retry nor held by another worker; the number of turns committed here."""
        return await self._run(until_idle=True)

    async def stop(self, grace: float = 30.0) -> None:
        """Claim nothing new, let the turns that run finish for ``grace`` seconds, then cancel
        them and release their leases, which costs them no attempt. Returns when ``run`` is about
        to. A second call with a shorter grace shortens the first."""
        if self._round is not None:
            await self._round.stop(arguments.seconds(grace, "grace"))

    async def _run(self, *, until_idle: bool) -> int:
        if self._round is not None:
            raise InvalidArgument("this worker is running already; make another one")
        worker_id = f"{self._name or 'worker'}-{uuid4().hex[:12]}"
        runs = Runs(
            self._core,
            worker_id,
            self._handler,
            max_attempts=self._max_attempts,
            retry=self._retry,
            turn_timeout=self._turn_timeout,
        )
        self._round = _Round(self, worker_id, runs)
        try:
            return await self._round.work(until_idle=until_idle)
        finally:
            self._round = None


class _Round:
    """One run of a worker, under one id."""

    def __init__(self, worker: Worker, worker_id: str, runs: Runs) -> None:
        self.id = worker_id
        self._worker = worker
        self._core = worker._core
        self._runs = runs
        self._keeper = LeaseKeeper(self._core, worker_id, worker._lease_seconds)
        self._wake = Signal()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stop_by = float("inf")
        self._committed = 0
        self._poll_at = 0.0
        self._one_writer = worker._core.engine.dialect.name == "sqlite"
        self._answer_lost = False
        self._turn_ended = False
        self._claiming: asyncio.Task[list[Lease]] | None = None
        self._left_to_expire: dict[Key, float] = {}
        """The sessions whose turns ended without the database hearing of it, and when they did."""

    async def work(self, *, until_idle: bool) -> int:
        log.info("worker %s starts", self.id)
        try:
            async with self._surroundings():
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
    async def _surroundings(self) -> AsyncIterator[None]:
        """What goes on beside the turns: hints, heartbeats, the watchdog."""
        watchdog = Watchdog(seconds=min(BLOCKED_SECONDS, self._worker._lease_seconds / 3))
        watchdog.start()
        keeping = asyncio.create_task(self._keeper.keep(), name="heartbeats")
        unobserved = telemetry.on.observe(LoadSource(self._core, self._worker._namespaces))
        try:
            async with self._core.wakeups.listening("work", self._wake):
                yield
        finally:
            unobserved()
            self._keeper.close()
            keeping.cancel()
            await asyncio.wait((keeping,))
            await asyncio.to_thread(watchdog.stop)

    # ---- the loop ----------------------------------------------------------------------------

    async def _loop(self, *, until_idle: bool) -> None:
        failures = 0
        hinted = True
        while not self._stopping.is_set():
            try:
                idle = await self._look(hinted)
            except StorageError as error:
                failures += 1
                pause = pause_after(failures)
                log.warning("the database fails, trying again in %.1f s: %s", pause, error)
                await self._wait(pause)
                hinted = True
                continue
            failures = 0
            if until_idle and idle:
                return
            hinted = await self._wait(self._poll_at - time.monotonic())

    async def _look(self, hinted: bool) -> bool:
        """Claim what there is for the free slots; whether there is nothing left to do at all.

        A hint, or the end of a turn, is followed by a claim at once. Otherwise one cheap query
        asks first whether there is anything: a message, a backoff that is over, or a lease that
        has expired. So does an idle worker on SQLite: hints there are of any commit, and a claim
        takes the lock that writers wait for.
        """
        if self._answer_lost:
            await self._give_back_strays()
        trusted = self._turn_ended or bool(self._keeper.held) or not self._one_writer
        self._turn_ended = False
        if hinted and trusted and time.monotonic() < self._poll_at:
            await self._claim()
            if self._keeper.held:
                return False
        due = await self._due()
        if due.in_seconds == 0:
            await self._revive()
        if due.ready or due.in_seconds == 0:
            await self._claim()
            return False
        return not self._keeper.held and due.in_seconds is None

    def _free(self) -> int:
        return self._worker._concurrency - len(self._keeper.held)

    async def _wait(self, seconds: float) -> bool:
        """Until a hint, the end of a turn, or the timeout; false for the timeout."""
        return await self._wake.wait(max(0.0, seconds))

    async def _due(self) -> Due:
        due = await self._core.runner.read(
            partial(mailbox.due, namespaces=self._worker._namespaces)
        )
        # A fleet that was started together must not ask together.
        pause = self._worker._poll_interval * random.uniform(0.8, 1.2)
        if due.in_seconds is not None:
            # What is due but locked by another worker is not asked for without a pause.
            pause = min(pause, max(due.in_seconds, 0.02))
        self._poll_at = time.monotonic() + pause
        return due

    async def _revive(self) -> None:
        """Make ready what a backoff or a dead worker held back."""
        namespaces = self._worker._namespaces
        await self._core.runner.write(partial(mailbox.wake, namespaces=namespaces))
        reaped = await self._core.runner.write(
            partial(mailbox.reap, namespaces=namespaces, max_attempts=self._worker._max_attempts)
        )
        if reaped:
            log.warning("took back %d expired leases", reaped)
            telemetry.expired(reaped)
            self._core.wakeups.announce("done")  # a message may have died

    async def _claim(self) -> None:
        """Fill the free slots, many of them by halves: then the turns go in two groups, and the
        database commits those of the one while the handlers of the other run."""
        at_once = self._worker._concurrency
        if not self._one_writer:
            at_once = max(FULL, -(-at_once // 2))
        while (slots := min(self._free(), at_once)) > 0:
            if await self._claim_up_to(slots) < slots:
                break

    async def _claim_up_to(self, slots: int) -> int:
        """Claim so many sessions, if there are as many, and start their turns; how many."""
        asked = time.monotonic()
        self._claiming = asyncio.create_task(
            self._core.runner.statement(
                partial(
                    mailbox.claim,
                    worker=self.id,
                    namespaces=self._worker._namespaces,
                    slots=slots,
                    batch=self._worker._batch,
                    lease_seconds=self._worker._lease_seconds,
                )
            )
        )
        self._answer_lost = True  # until it is here, also if we are cancelled now
        leases = await asyncio.shield(self._claiming)
        self._answer_lost = False
        if leases:
            telemetry.on.claims.add(len(leases))
        for lease in leases:
            self._start(Held(lease), asked)
        return len(leases)

    async def _give_back_strays(self) -> None:
        """Release what may have been leased to us by a claim whose answer was lost. Not what was
        handed to a turn: that attempt was made, and counts."""
        known = frozenset((*self._keeper.held, *self._left_to_expire))
        await self._core.runner.write(partial(mailbox.release_unknown, worker=self.id, known=known))
        self._answer_lost = False

    # ---- turns -------------------------------------------------------------------------------

    def _start(self, held: Held, asked: float) -> None:
        name = named(self._worker._handler)
        held.task = asyncio.create_task(
            self._runs.run(held), name=f"handler {name} for session {held.lease.session.id}"
        )
        self._keeper.take(held, asked)
        self._left_to_expire.pop(held.lease.key, None)
        held.task.add_done_callback(partial(self._ended, held))

    def _ended(self, held: Held, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            return  # by us, and still to be released
        self._keeper.drop(held)
        now = time.monotonic()
        if held.given_up is not None or now > held.until:
            long_ago = now - LEASES_UNTIL_FORGOTTEN * self._worker._lease_seconds
            self._left_to_expire = {
                key: ended for key, ended in self._left_to_expire.items() if ended > long_ago
            } | {held.lease.key: now}
        if task.exception() is not None:
            log.error("a turn failed in an unforeseen way", exc_info=task.exception())
        elif task.result():
            self._committed += 1
        self._turn_ended = True
        self._wake.set()

    async def _finish(self) -> None:
        """Let turns come to their end, until the grace is over."""
        while self._keeper.held and (left := self._stop_by - time.monotonic()) > 0:
            tasks = [held.task for held in self._keeper.held.values()]
            # In steps, because a second stop may bring the end nearer.
            await asyncio.wait(tasks, timeout=min(left, 0.1))

    async def _release_all(self) -> None:
        """Cancel what still runs, and give its leases back."""
        if self._answer_lost and self._claiming is not None:
            await asyncio.wait((self._claiming,), timeout=RELEASE_SECONDS)
            with contextlib.suppress(SessionsDBError):
                await self._give_back_strays()
        left = list(self._keeper.held.values())
        cancelled = [held for held in left if not held.settling]
        for held in cancelled:
            held.task.cancel("the worker stops")
        if left:
            await asyncio.wait([held.task for held in left], timeout=RELEASE_SECONDS)
        released = [held for held in cancelled if held in self._keeper.held.values()]
        if released:
            with contextlib.suppress(SessionsDBError):  # else they expire
                await self._core.runner.write(
                    partial(
                        mailbox.release,
                        worker=self.id,
                        leases=[held.lease for held in released],
                    )
                )
                self._core.wakeups.announce("work")
        for held in left:
            self._keeper.drop(held)
