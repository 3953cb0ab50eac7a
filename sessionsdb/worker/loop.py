"""The loop of a worker: claim sessions, run their turns, release leases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial

from sessionsdb.engine.notifier import Signal
from sessionsdb.engine.tasks import backoff_seconds, finish_before_cancel
from sessionsdb.errors import SessionsDBError, StorageError
from sessionsdb.operations import expiry
from sessionsdb.operations.inbox_types import Due, Lease
from sessionsdb.operations.keys import Fence
from sessionsdb.runtime.database_access import WORK
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.runtime.search_indexer import SearchIndexer
from sessionsdb.telemetry import observed
from sessionsdb.telemetry.load_gauges import LoadSource
from sessionsdb.telemetry.observed import TurnResult
from sessionsdb.worker.attempt_error import summarise_error
from sessionsdb.worker.brake import TRIALS, Brake, split_trial
from sessionsdb.worker.claims import Claims
from sessionsdb.worker.due_work import DueWork
from sessionsdb.worker.handler import handler_name
from sessionsdb.worker.hints import WorkHints
from sessionsdb.worker.leases import HeldLease, LeaseKeeper
from sessionsdb.worker.options import WorkerOptions
from sessionsdb.worker.slots import Slots
from sessionsdb.worker.turn_runner import TurnRunner
from sessionsdb.worker.watchdog import Watchdog

log = logging.getLogger("sessionsdb.worker")

BLOCKED_SECONDS = 1.0
"""The watchdog warns about a handler that blocks the event loop for longer."""

LEASES_UNTIL_FORGOTTEN = 10
"""After this many times its length an abandoned lease has expired for certain."""

RELEASE_SECONDS = 5.0
"""How long a turn that ``stop`` cancelled may clean up before its lease is released."""

LONGEST_BACKOFF_SECONDS = 5.0
"""The longest pause while the database fails. No hint ends it, also when the database is back."""

MIN_POLL_SECONDS = 0.02
"""The shortest pause between two polls. A session may be due and locked by another worker."""

BRAKED_POLL_SECONDS = 0.5
"""The shortest pause between two polls while the brake is on."""


class WorkerLoop:
    """One run of a worker, under one worker id."""

    def __init__(self, database: OpenDatabase, worker_id: str, options: WorkerOptions) -> None:
        self.id = worker_id
        self._options = options
        self._database = database
        self._leases = LeaseKeeper(database, worker_id, options.lease_seconds)
        self._claims = Claims(database, worker_id, options)
        self._turn_runner = TurnRunner(
            database,
            worker_id,
            options,
            self._leases,
            self._claims,
            is_ending=self._is_ending,
            on_commit=self._on_commit,
        )
        self._turn_name = f"handler {handler_name(options.handler)} for session "
        self._slots = Slots(options.concurrency, self._leases)
        self._wakeup = Signal()
        self._hints = WorkHints(self._wakeup)
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stop_deadline = float("inf")
        self._run_task: asyncio.Task[object] | None = None
        self._cancelled_before = 0
        """How many cancellations of the task came before this run. Its caller suppressed them."""
        self._releasing = False
        """Whether leases are being released because the worker stops."""
        self._exit: BaseException | None = None
        self._started = 0
        self._committed = 0
        self.failed = 0
        self.died = 0
        """How many messages are dead after their last attempt by this worker."""
        self._brake = Brake()
        self._next_poll_at = 0.0
        self._due_work = DueWork(database, options.namespaces, max_attempts=options.max_attempts)
        self._has_one_writer = database.has_one_writer
        self._turn_ended = False
        """Whether a turn has ended since the last poll."""
        self._slot_offered = False
        """Whether a turn has begun to commit since the last poll, and its slot can be filled."""
        self._indexer = (
            SearchIndexer(database, options.namespaces, is_busy=lambda: len(self._leases) > 0)
            if options.index_search
            else None
        )
        self._abandoned_leases: dict[Fence, float] = {}
        """Leases whose turns ended without a record in the database, and when they ended."""

    async def run(self, *, until_idle: bool) -> int:
        """Work until stopped, or until idle. Returns the number of turns that were committed.

        This opens the database at its first use. A stop that comes meanwhile is kept.

        Raises ``SystemExit`` or ``KeyboardInterrupt`` if a handler did, and ``InvalidArgument`` if
        the handler is not async.
        """
        log.info("worker %s starts", self.id)
        self._run_task = task = asyncio.current_task()
        self._cancelled_before = 0 if task is None else task.cancelling()
        try:
            await self._database.ready()
            async with self._background_tasks():
                try:
                    await self._poll(until_idle=until_idle)
                    await self._finish_turns()
                    if until_idle and self._indexer is not None:
                        await self._indexer.finish()
                finally:
                    self._releasing = True
                    await finish_before_cancel(self._release_all())
        finally:
            self._stopped.set()
            turns = "1 turn" if self._committed == 1 else f"{self._committed} turns"
            log.info("worker %s stops after %s", self.id, turns)
        if self._exit is not None:
            raise self._exit
        return self._committed

    async def stop(self, grace: float) -> None:
        self._begin_stop(grace)
        await self._stopped.wait()

    def _begin_stop(self, grace: float) -> None:
        self._stop_deadline = min(self._stop_deadline, time.monotonic() + grace)
        self._stopping.set()
        self._slots.close()
        self._wakeup.set()

    def _is_ending(self) -> bool:
        """Whether turns are cancelled because the worker stops. Their attempts are not counted."""
        task = self._run_task
        return self._releasing or (task is not None and task.cancelling() > self._cancelled_before)

    @asynccontextmanager
    async def _background_tasks(self) -> AsyncIterator[None]:
        """Run the watchdog and the heartbeats, and subscribe to wake-ups."""
        watchdog = Watchdog(seconds=min(BLOCKED_SECONDS, self._options.lease_seconds / 3))
        watchdog.start()
        keeping = [
            asyncio.create_task(self._leases.renew_forever(), name="heartbeats"),
            asyncio.create_task(self._leases.watch_stops_forever(), name="stops"),
        ]
        if self._indexer is not None:
            keeping.append(asyncio.create_task(self._indexer.run_forever(), name="search index"))
        remove_gauges = observed.telemetry.observe_load(
            LoadSource(self._database, self._options.namespaces)
        )
        try:
            async with self._database.notifier.subscribe(WORK, self._hints):
                yield
        finally:
            remove_gauges()
            self._hints.close()
            self._leases.close()
            self._slots.close()
            watchdog.stop()
            for task in keeping:
                task.cancel()
            await finish_before_cancel(self._end(keeping))

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        await asyncio.wait(keeping)
        await self._turn_runner.close()

    # ---- polls and claims --------------------------------------------------------------------

    async def _poll(self, *, until_idle: bool) -> None:
        failures = 0
        woken = True
        while not self._stopping.is_set():
            try:
                idle = await self._poll_once(woken, until_idle=until_idle)
            except StorageError as error:
                failures += 1
                pause = backoff_seconds(failures, max_seconds=LONGEST_BACKOFF_SECONDS)
                log.warning("the database fails, trying again in %.1f s: %s", pause, error)
                await self._wait_for_stop(pause)
                woken = True
                continue
            failures = 0
            if until_idle and idle:
                return
            woken = await self._wait(self._next_poll_at - time.monotonic())

    async def _poll_once(self, woken: bool, *, until_idle: bool) -> bool:
        """Claim sessions for the free slots. Returns whether no message is unfinished anywhere, and
        no scheduled one is due.

        Messages behind an open question do not count: they wait for a person.

        After a wake-up or the end of a turn, this claims at once. With a backlog it claims beside
        the commit of a turn. Otherwise one cheap query looks first: for a ready session, a backoff
        that is over, an expired lease, a due schedule. An idle worker also looks first where
        another one has probably claimed, and on SQLite. There every commit of another process wakes
        it, and a claim takes the lock that all writers wait for.
        """
        if self._claims.is_unanswered:
            await self._release_unknown()
        turn_ended, self._turn_ended = self._turn_ended, False
        slot_offered, self._slot_offered = self._slot_offered, False
        is_idle = len(self._leases) == 0 and not turn_ended
        looks_first = is_idle and (self._has_one_writer or self._hints.are_shared)
        # A hint of a file is a commit, and a look at the file is cheap.
        own_signal = turn_ended or slot_offered
        by_hint = woken and not own_signal and not self._has_one_writer
        had_free_slots, started = self._free_slots() > 0, self._started
        try:
            idle = await self._claim_if_ready(woken and not looks_first, until_idle=until_idle)
        except StorageError:
            self._turn_ended |= turn_ended  # the next try claims at once, and tells the others
            raise
        finally:
            if turn_ended and not self._free_slots():
                self._database.wake((WORK,))  # sessions that the turn made ready may be left
        if by_hint and had_free_slots and self._started == started:
            self._hints.was_fruitless()
        return idle

    async def _claim_if_ready(self, claim_first: bool, *, until_idle: bool) -> bool:
        """Claim at once if ``claim_first``, otherwise if the database says that it is worth it.

        Returns as ``_poll_once``.
        """
        if claim_first and time.monotonic() < self._next_poll_at:
            if self._free_slots():
                await self._fill_slots()
            if len(self._leases):
                return False
        due = await self._read_next_due(until_idle=until_idle)
        self.died += await self._due_work.do(due)
        if (resting := self._due_work.seconds_left()) > 0:  # a look would find the same work due
            pause = min(resting, self._options.poll_interval)
            self._next_poll_at = max(self._next_poll_at, time.monotonic() + pause)
        if due.ready or due.soonest == 0:
            await self._fill_slots()
            return False
        return len(self._leases) == 0 and due.idle

    async def _wait(self, seconds: float) -> bool:
        """Wait for a wake-up or the end of a turn. Returns whether one came in time."""
        return await self._wakeup.wait(max(0.0, seconds))

    async def _wait_for_stop(self, seconds: float) -> None:
        """Wait, whatever wakes this worker. Others may succeed where this one fails, and each of
        their commits is a hint."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _read_next_due(self, *, until_idle: bool) -> Due:
        """Read when there is something to claim, and plan the next poll for it."""
        due = await self._database.read(
            partial(expiry.next_due, namespaces=self._options.namespaces, until_idle=until_idle)
        )
        # With jitter, so that workers that were started together do not poll together.
        pause = self._options.poll_interval * random.uniform(0.8, 1.2)
        if due.soonest is not None:
            pause = min(pause, max(due.soonest, MIN_POLL_SECONDS))
        if (braked := self._brake.seconds_left()) > 0:
            # Ready sessions wait for the end of the brake. Schedules, questions and leases do not.
            pause = min(braked, max(pause, BRAKED_POLL_SECONDS))
        self._next_poll_at = time.monotonic() + pause
        return due

    async def _fill_slots(self) -> None:
        """Claim sessions until no slot is free or no session is ready.

        One claim asks for all free slots. Claims for half of them each were tried: one half of the
        turns would commit while the handlers of the other half run. It gained nothing. 64 turns at
        once on PostgreSQL ran at 0.98 of the speed, the median of 24 pairs of runs.
        """
        started = self._started
        while (slots := self._free_slots()) > 0:
            claimed = await self._claim(slots)
            # Of several namespaces one may have more than its share, and others less than theirs.
            if claimed == 0 or (claimed < slots and self._claims.serves_one_namespace):
                break
        if self._started > started:
            self._hints.was_fruitful()

    def _free_slots(self) -> int:
        if self._brake.is_on:
            return int(len(self._leases) == 0 and self._brake.seconds_left() == 0)
        return self._slots.free()

    async def _claim(self, slots: int) -> int:
        """Claim at most ``slots`` sessions and start their turns. Returns how many were started."""
        requested_at = time.monotonic()
        ahead = self._slots.is_ahead(slots)
        started = await self._take_leases(slots)
        self._slots.count_claim(slots, len(started), ahead=ahead)
        released: list[Lease] = []
        if started and self._brake.is_on and started[0].is_retried:
            started, released = split_trial([*started, *await self._take_leases(TRIALS)])
        if self._stopping.is_set():  # the stop came while the claim was on its way
            started, released = [], [*started, *released]
        if released:
            await self._claims.release(released)
        self._claims.finish(started)
        for lease in started:
            self._start_turn(HeldLease(lease), requested_at)
        self._started += len(started)
        return len(started)

    def _take_leases(self, slots: int) -> Awaitable[list[Lease]]:
        return self._claims.take(slots, self._slots.taken())

    async def _release_unknown(self) -> None:
        """Release the leases of a claim whose answer was lost."""
        held = (held.lease.fence for held in self._leases)
        await self._claims.release_unknown(frozenset((*held, *self._abandoned_leases)))

    # ---- turns -------------------------------------------------------------------------------

    def _start_turn(self, held: HeldLease, requested_at: float) -> None:
        self._slots.take(held)
        held.start(
            self._turn_runner.run(held),
            self._turn_name + held.lease.session_id,
            self._on_turn_done,
        )
        self._leases.add(held, requested_at)

    def _on_commit(self, held: HeldLease) -> None:
        if self._slots.offer(held):
            self._slot_offered = True
            self._wakeup.set()

    def _on_turn_done(self, held: HeldLease) -> None:
        task = held.task
        if held.exit is not None:
            log.error("a handler ends this worker: %s", summarise_error(held.exit))
            self._exit = held.exit
            self._begin_stop(grace=0.0)
        if task.cancelled() and (self._is_ending() or held.exit is not None):
            return  # _release_all releases the lease
        if task.cancelled() and held.cancel_reason is None and held.give_back_once():
            held.hand_over(self._claims.give_back(held))
            return
        self._leases.remove(held)
        now = time.monotonic()
        is_unrecorded = (held.cancel_reason is not None and not held.was_stopped) or (
            not task.cancelled() and task.exception() is None and task.result() == "lost"
        )
        if (is_unrecorded or now > held.deadline or task.cancelled()) and held.has_begun:
            oldest = now - LEASES_UNTIL_FORGOTTEN * self._options.lease_seconds
            abandoned = self._abandoned_leases.items()
            self._abandoned_leases = {
                fence: ended_at for fence, ended_at in abandoned if ended_at > oldest
            } | {held.lease.fence: now}
        if task.cancelled():
            if held.cancel_reason is None:
                log.error("the end of a turn was cancelled from elsewhere: its lease runs out")
        elif task.exception() is not None:
            log.error("a turn failed in an unforeseen way", exc_info=task.exception())
        else:
            self._count(held, task.result())
        if self._brake.is_on:
            self._slots.give_back_all()
        self._slots.release(held)
        self._turn_ended = True
        self._wakeup.set()
        if self._stopping.is_set():  # this worker claims no more
            self._database.wake((WORK,))

    def _count(self, held: HeldLease, result: TurnResult | None) -> None:
        if result == "committed":
            self._committed += 1
            self._brake.committed()
        elif result in ("failed", "dead"):
            self.failed += 1
            self._brake.failed(held.key)
            if result == "dead":
                self.died += len(held.lease.begun)

    async def _finish_turns(self) -> None:
        """Wait for running turns until the grace period of ``stop`` is over."""
        while len(self._leases) and (left := self._stop_deadline - time.monotonic()) > 0:
            tasks = [held.task for held in self._leases]
            # In steps of 0.1 s, because a second stop may shorten the grace period.
            await asyncio.wait(tasks, timeout=min(left, 0.1))

    async def _release_all(self) -> None:
        """Cancel the turns that still run, and release their leases."""
        claims = self._claims
        if claims.is_unanswered and claims.in_flight is not None:
            await asyncio.wait((claims.in_flight,), timeout=RELEASE_SECONDS)
            with contextlib.suppress(SessionsDBError):
                await self._release_unknown()
        running = list(self._leases)
        cancelled = [held for held in running if not held.handler_done]
        for held in cancelled:
            held.task.cancel("the worker stops")
        if running:
            await asyncio.wait([held.task for held in running], timeout=RELEASE_SECONDS)
        released = [held for held in cancelled if held in self._leases.held.values()]
        if released:
            await claims.release_at_stop([held.lease for held in released], RELEASE_SECONDS)
        for held in running:
            self._leases.remove(held)
