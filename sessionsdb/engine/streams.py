"""Coalescers side by side, so that the database works on one batch while we make the next."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Generic

from sessionsdb.engine.coalescer import Coalescer, Request, Result, Serve

FULL = 32
"""How many requests one coalescer has before the next one gets any.

A batch has a price of its own (measured on PostgreSQL: 0.2 ms of ours and 0.2 of the server's), so
few requests go together. Many are worth halving: 64 turns at once take 178 µs each in one batch,
and 147 in two.
"""


class Streams(Generic[Request, Result]):
    """As many coalescers as batches may be in flight at once.

    Requests with the same key that are under way at the same time go through the same coalescer,
    so they are served in the order in which they were submitted. One whose caller was cancelled in
    flight is under way until its batch is done.
    """

    def __init__(
        self,
        serve: Serve[Request, Result],
        *,
        count: int,
        most: int = 500,
        full: int = FULL,
    ) -> None:
        self._serve = serve
        self._coalescers: list[Coalescer[tuple[Hashable, Request], Result]] = [
            Coalescer(partial(self._serve_batch, place), most=most) for place in range(count)
        ]
        self._full = full
        self._under_way: dict[Hashable, _UnderWay] = {}

    async def submit(self, key: Hashable, request: Request) -> Result:
        """The result of this request. Raises what it failed with."""
        under_way = self._under_way.get(key)
        place = self._freest() if under_way is None else under_way.place
        self._hold(key, place)
        try:
            return await self._coalescers[place].submit((key, request))
        finally:
            self._let_go(key)

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        for coalescer in self._coalescers:
            await coalescer.drain()

    async def _serve_batch(
        self, place: int, batch: list[tuple[Hashable, Request]]
    ) -> Sequence[Result | Exception]:
        for key, _ in batch:
            self._hold(key, place)
        try:
            return await self._serve([request for _, request in batch])
        finally:
            for key, _ in batch:
                self._let_go(key)

    def _hold(self, key: Hashable, place: int) -> None:
        """From now on requests with this key go where this one goes."""
        under_way = self._under_way.get(key)
        if under_way is None:
            under_way = self._under_way[key] = _UnderWay(place)
        under_way.count += 1

    def _let_go(self, key: Hashable) -> None:
        under_way = self._under_way[key]
        under_way.count -= 1
        if not under_way.count:
            del self._under_way[key]

    def _freest(self) -> int:
        """The first that is not full, or else the one with least to do."""
        loads = [coalescer.load for coalescer in self._coalescers]
        for place, load in enumerate(loads):
            if load < self._full:
                return place
        return loads.index(min(loads))


class _UnderWay:
    """Where the requests of one key go, and how many hold it there: callers that wait, and batches
    in flight."""

    __slots__ = ("count", "place")

    def __init__(self, place: int) -> None:
        self.place = place
        self.count = 0
