"""The claims of one worker: requests for leases, and answers that were lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from sessionsdb.engine.tasks import start_uncancelled
from sessionsdb.errors import SessionsDBError, StorageError
from sessionsdb.operations import lease_ends, mailbox, undeliverable
from sessionsdb.operations.fair_shares import in_rotation
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.operations.keys import Fence
from sessionsdb.runtime.database_access import WORK
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry import observed
from sessionsdb.telemetry.observed import TurnResult
from sessionsdb.worker.leases import HeldLease
from sessionsdb.worker.options import WorkerOptions
from sessionsdb.worker.tries import Tries

log = logging.getLogger("sessionsdb.worker")

EMPTY_CLAIMS = 8
"""After so many claims in a row without a lease, where some session was ready, a worker looks for
sessions that can't be leased. One or two are usual: other workers were faster."""

LOCKED_SECONDS = 0.05
"""The pause before locked mailboxes are tried again, at the end of a worker."""


class Claims:
    """Takes leases for one worker, and gives back those that no turn is started for."""

    def __init__(self, database: OpenDatabase, worker_id: str, options: WorkerOptions) -> None:
        self._database = database
        self._worker_id = worker_id
        self._options = options
        namespaces = options.namespaces
        self.serves_one_namespace = namespaces is not None and len(namespaces) == 1
        self._last_served = ""
        """The namespace that got a share last. Those behind it get the next slots."""
        self._empty_claims = 0
        """How many claims in a row gave no lease."""
        self.in_flight: asyncio.Task[list[Lease]] | None = None
        """The last claim."""
        self.is_unanswered = False
        """Whether the database may have leased sessions to this worker without its knowledge."""

    async def take(self, slots: int, taken: Iterable[HeldLease]) -> list[Lease]:
        """Claim at most ``slots`` sessions. Until ``finish``, the claim is unanswered.

        ``taken``: the leases that have slots. Namespaces share the slots.
        """
        held = {} if self.serves_one_namespace else Counter(held.lease.namespace for held in taken)
        asked: list[str] = []
        self.in_flight = start_uncancelled(
            self._database.write_autocommit(
                partial(
                    mailbox.claim,
                    worker=self._worker_id,
                    namespaces=self._options.namespaces,
                    slots=slots,
                    batch=self._options.batch,
                    lease_seconds=self._options.lease_seconds,
                    after=self._last_served,
                    held=held,
                    asked=asked,
                ),
                wakes=(),
            )
        )
        self.is_unanswered = True  # stays true if this task is cancelled at the next line
        leases = await asyncio.shield(self.in_flight)
        if leases:
            self._empty_claims = 0
        elif asked:
            # All that is ready there may be locked. The next claim asks the namespaces behind them.
            self._last_served = in_rotation(asked, self._last_served)[-1]
            self._empty_claims += 1
            if self._empty_claims % EMPTY_CLAIMS == 0:
                await self._set_aside(asked, slots)
        return leases

    async def _set_aside(self, namespaces: Collection[str], limit: int) -> None:
        """Let sessions that are ready, and can't be leased, stand in the way of others no more."""
        operation = partial(undeliverable.set_aside, namespaces=namespaces, limit=limit)
        for namespace, session_id in await self._database.write(operation, wakes=()):
            log.warning(
                "session %s of namespace %s has no message that could be delivered: its rows were "
                "changed by hand. It waits until sessionsdb doctor --fix repairs it",
                session_id,
                namespace,
            )

    def finish(self, started: Sequence[Lease]) -> None:
        """Note the leases of a claim whose turns are started now. The others were released."""
        self.is_unanswered = False
        if not started:
            return
        observed.telemetry.record_claimed_leases(len(started))
        if not self.serves_one_namespace:
            served = in_rotation({lease.namespace for lease in started}, self._last_served)
            self._last_served = served[-1]

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give leases back without an attempt. Other workers are told."""
        await self._database.write(
            partial(lease_ends.release, worker=self._worker_id, leases=leases), wakes=(WORK,)
        )

    async def release_at_stop(self, leases: Sequence[Lease], seconds: float) -> None:
        """Give leases back, and wait at most ``seconds`` for mailboxes that are locked.

        The leases that are left run out. No error is raised.
        """
        deadline = time.monotonic() + seconds
        while True:
            operation = partial(lease_ends.release_free, worker=self._worker_id, leases=leases)
            try:
                leases = await self._database.write(operation, wakes=(WORK,))
            except SessionsDBError as error:
                log.warning("%d leases are not given back, they run out: %s", len(leases), error)
                return
            if not leases:
                return
            if time.monotonic() > deadline:
                log.warning("%d leases run out: their sessions are locked", len(leases))
                return
            await asyncio.sleep(LOCKED_SECONDS)

    async def give_back(self, held: HeldLease) -> TurnResult:
        """Release a lease whose turn has not begun.

        While the database fails, this tries again for the length of one lease. Then the lease runs
        out.
        """
        log.info("session %s is given back: its turn did not begin", held.lease.session_id)
        tries = Tries(held, self._options.lease_seconds, "give a session back")
        while True:
            try:
                await self.release([held.lease])
                return "released"
            except StorageError as error:
                if not await tries.go_on(error):
                    return "given_up"

    async def release_unknown(self, known: Collection[Fence]) -> None:
        """Give back the leases of a claim whose answer was lost.

        ``known``: the leases that this worker holds, and those of turns that ended without a record
        in the database. The attempts of the latter count.
        """
        await self._database.write(
            partial(lease_ends.release_unknown, worker=self._worker_id, known=known),
            wakes=lambda released: (WORK,) if released else (),
        )
        self.is_unanswered = False
