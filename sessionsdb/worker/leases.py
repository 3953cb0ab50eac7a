"""Keeps a worker's leases: renews them all at once, and gives up those it can't keep."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from sessionsdb.errors import SessionsDBError
from sessionsdb.operations import mailbox
from sessionsdb.operations.row_locks import SessionKey
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.worker.turn_runner import HeldLease

log = logging.getLogger("sessionsdb.worker")

MARGIN = 0.1
"""The part of a lease before whose end it is given up: a turn is cancelled while the database
still keeps others away."""


class LeaseKeeper:
    """The leases a worker holds."""

    def __init__(self, database: OpenDatabase, worker: str, lease_seconds: float) -> None:
        self._database = database
        self._worker = worker
        self._seconds = lease_seconds
        self.held: dict[SessionKey, HeldLease] = {}
        self._alarm: asyncio.TimerHandle | None = None

    def take(self, held: HeldLease, asked: float) -> None:
        """Keep a lease that was asked for at ``asked``, by the monotonic clock."""
        earlier = self.held.get(held.lease.key)
        if earlier is not None and earlier is not held:
            earlier.give_up("its lease ran out, and this worker was given the session again")
        self.held[held.lease.key] = held
        held.until = asked + self._seconds * (1 - MARGIN)
        self._watch(held.until)

    def drop(self, held: HeldLease) -> None:
        """Its turn is over."""
        if self.held.get(held.lease.key) is held:
            del self.held[held.lease.key]

    def close(self) -> None:
        """Watch no longer."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _watch(self, until: float) -> None:
        """Look at the leases at ``until``. One alarm serves them all, and is seldom set: most
        turns are over long before, and a timer for each costs as much as its heartbeat."""
        if self._alarm is not None:
            if self._alarm.when() <= until:
                return
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_at(until, self._give_up)

    def _give_up(self) -> None:
        self._alarm = None
        now = asyncio.get_running_loop().time()
        for held in list(self.held.values()):
            if held.until <= now:
                held.give_up("its lease ran out before it could be renewed")
            else:
                self._watch(held.until)

    async def keep(self) -> None:
        """Renew every third of a lease, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds / 3)
            await self._renew()

    async def _renew(self) -> None:
        held = [one for one in self.held.values() if one.given_up is None]
        if not held:
            return
        asked = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds / 3):
                kept = await self._database.write_autocommit(
                    partial(
                        mailbox.heartbeat,
                        worker=self._worker,
                        held=[(one.lease.key, one.lease.epoch) for one in held],
                        lease_seconds=self._seconds,
                    ),
                    wakes=(),
                )
        except (SessionsDBError, TimeoutError) as error:
            log.warning("can't renew %d leases, trying again: %s", len(held), error)
            return
        for one in held:
            if self.held.get(one.lease.key) is not one:
                continue  # its turn has come to its end meanwhile
            if one.lease.key in kept:
                self.take(one, asked)
            else:
                one.give_up("its lease is no longer ours: it expired, or the session ended")
