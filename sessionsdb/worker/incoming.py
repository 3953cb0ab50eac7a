"""The messages that join a turn while it runs: ``Turn.take_incoming``."""

from __future__ import annotations

import asyncio
from functools import partial

from sessionsdb.errors import LeaseLost, StorageError
from sessionsdb.operations import joining
from sessionsdb.operations.inbox_types import Delivery
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.worker.leases import HeldLease


class Incoming:
    """Takes messages for one turn, and knows of every message that has joined it.

    A take may be cancelled, or its answer may be lost, after messages have joined. The next take
    returns these messages. If there is none, they are given back before the commit.
    """

    def __init__(self, database: OpenDatabase, worker_id: str, held: HeldLease) -> None:
        self._database = database
        self._worker = worker_id
        self._held = held
        self._lock = asyncio.Lock()
        self._join: asyncio.Task[list[Delivery]] | None = None
        """A join whose messages are not known yet."""
        self._unseen: list[Delivery] = []
        """Messages that have joined, and that the handler did not get yet."""

    async def take(self, limit: int | None) -> list[Delivery]:
        """Add at most ``limit`` waiting messages to the lease's deliveries, and return them.

        Raises ``LeaseLost`` and ``StorageError``.
        """
        async with self._lock:
            self._require_running()
            if self._join is not None:
                await self._settle()
            if limit is None or len(self._unseen) < limit:
                room = None if limit is None else limit - len(self._unseen)
                self._begin_join(room)
                await self._settle()
            self._require_running()
            count = len(self._unseen) if limit is None else limit
            taken, self._unseen = self._unseen[:count], self._unseen[count:]
            self._held.lease.deliveries.extend(taken)
            return taken

    async def give_back_unseen(self) -> None:
        """Give back the messages that joined and that the handler did not get, before the commit.

        Raises ``LeaseLost`` and ``StorageError``.
        """
        async with self._lock:
            if self._join is not None:
                await self._settle()
            if self._unseen:
                give_back = partial(
                    joining.give_back,
                    worker=self._worker,
                    lease=self._held.lease,
                    positions=[one.position for one in self._unseen],
                )
                await self._database.write(give_back, wakes=())
                self._unseen = []

    def _require_running(self) -> None:
        if self._held.handler_done or self._held.cancel_reason is not None:
            raise LeaseLost(self._held.lease.session_id)

    def _begin_join(self, limit: int | None) -> None:
        # In a task of its own: a cancelled caller must find out later which messages joined.
        join = partial(joining.join, worker=self._worker, lease=self._held.lease, limit=limit)
        self._join = asyncio.create_task(self._database.write(join, wakes=()))
        self._join.add_done_callback(_retrieve_error)

    async def _settle(self) -> None:
        """Wait for the join that has begun, and note its messages."""
        assert self._join is not None
        try:
            joined = await asyncio.shield(self._join)
        except LeaseLost:
            self._join = None
            raise
        except StorageError:
            # It may have been committed. A failed look-up leaves that open for the next one.
            joined = await self._find_unknown()
            if not joined:
                self._join = None
                raise
        self._join = None
        self._unseen += joined

    async def _find_unknown(self) -> list[Delivery]:
        """Return the messages that have joined, and that this worker does not know of."""
        lease = self._held.lease
        known = {one.position for one in (*lease.deliveries, *self._unseen)}
        joined = await self._database.read_durable(
            partial(joining.find_joined, worker=self._worker, lease=lease)
        )
        return [one for one in joined if one.position not in known]


def _retrieve_error(join: asyncio.Task[list[Delivery]]) -> None:
    if not join.cancelled():
        join.exception()  # otherwise asyncio logs it if nothing awaits the join any more
