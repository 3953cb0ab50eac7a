"""Coalescers side by side, so that the database works on one batch while we make the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic

from sessionsdb.engine.batcher import Batcher, Request, Result, Serve

SPILL_AT = 32
"""How many requests one coalescer has before the next one gets any.

A batch has a price of its own (measured on PostgreSQL: 0.2 ms of ours and 0.2 of the server's), so
few requests go together. Many are worth halving: 64 turns at once take 178 µs each in one batch,
and 147 in two.
"""


class KeyedBatcher(Generic[Request, Result]):
    """As many coalescers as batches may be in flight at once.

    Requests with the same key that are under way at the same time go through the same coalescer,
    so they are served in the order in which they were submitted. One whose caller was cancelled in
    flight is under way until its batch is done.
    """

    def __init__(
        self,
        serve: Serve[Request, Result],
        *,
        key: Callable[[Request], Hashable],
        count: int,
        most: int = 500,
        full: int = SPILL_AT,
    ) -> None:
        self._key = key
        self._coalescers: list[Batcher[Request, Result]] = [
            Batcher(serve, most=most, over=self._on_request_done) for _ in range(count)
        ]
        self._full = full
        self._in_flight_by_key: dict[Hashable, _InFlight[Request, Result]] = {}

    async def submit(self, request: Request) -> Result:
        """The result of this request. Raises what it failed with."""
        key = self._key(request)
        under_way = self._in_flight_by_key.get(key)
        if under_way is None:
            under_way = self._in_flight_by_key[key] = _InFlight(self._least_loaded())
        under_way.count += 1
        return await under_way.coalescer.submit(request)

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        for coalescer in self._coalescers:
            await coalescer.drain()

    def _on_request_done(self, request: Request) -> None:
        key = self._key(request)
        under_way = self._in_flight_by_key[key]
        under_way.count -= 1
        if not under_way.count:
            del self._in_flight_by_key[key]

    def _least_loaded(self) -> Batcher[Request, Result]:
        """The first that is not full, or else the one with least to do."""
        for coalescer in self._coalescers:
            if coalescer.load < self._full:
                return coalescer
        return min(self._coalescers, key=lambda coalescer: coalescer.load)


class _InFlight(Generic[Request, Result]):
    """Where the requests of one key go, and how many they are."""

    __slots__ = ("coalescer", "count")

    def __init__(self, coalescer: Batcher[Request, Result]) -> None:
        self.coalescer = coalescer
        self.count = 0
