"""Serve several batches at once, and the requests of one key in order."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator
from functools import partial
from typing import Generic

from sessionsdb.engine.batcher import Batcher, Serve, Waiting
from sessionsdb.engine.runner import Request, Result

SPILL_AT = 32
"""How many requests one batcher has before the next batcher gets any.

A batch has a fixed cost, measured on PostgreSQL as 0.2 ms of our time and 0.2 ms of the server's.
So few requests go in one batch. Many are worth two: 64 concurrent turns take 178 µs each in one
batch, and 147 µs in two.
"""

MAX_STUCK = 4
"""How many batches may be stuck before the next one holds up what waits behind it. Each takes a
connection."""


class KeyedBatcher(Generic[Request, Result]):
    """As many batchers as batches may be in flight at once.

    Concurrent requests with the same key go through the same batcher, so they are served in the
    order of their ``submit`` calls. A request whose caller was cancelled in flight counts until its
    batch is done. With a ``count`` of 1 no keys are read, since one batcher keeps all in order.

    A key in ``apart`` gets a batcher of its own, while requests of it wait or are in flight. So its
    requests hold up no request of another key. ``apart`` is false while it is empty.

    A batch that is stuck holds up only the requests of its own keys. The others that wait behind it
    go through a batcher that takes the place of its batcher.
    """

    def __init__(
        self,
        serve: Serve[Request, Result],
        *,
        key: Callable[[Request], Hashable],
        count: int,
        max_batch: int = 500,
        weight: Callable[[Request], int] | None = None,
        max_weight: int = 0,
        spill_at: int = SPILL_AT,
        apart: Container[Hashable] = frozenset(),
    ) -> None:
        self._key = key
        self._new_batcher = partial(
            Batcher[Request, Result],
            serve,
            max_batch=max_batch,
            weight=weight,
            max_weight=max_weight,
        )
        self._apart = apart
        self._batchers = [
            self._new_batcher() if count == 1 else self._shared_batcher() for _ in range(count)
        ]
        self._stuck: list[Batcher[Request, Result]] = []
        """The batchers that were replaced, until their last request is done."""
        self._spill_at = spill_at
        self._in_flight_by_key: dict[Hashable, _InFlight[Request, Result]] = {}

    async def submit(self, request: Request) -> Result:
        """Return the result of a request, or raise the exception that it failed with."""
        if len(self._batchers) == 1:
            return await self._batchers[0].enqueue(request)
        key = self._key(request)
        in_flight = self._in_flight_by_key.get(key)
        if in_flight is None:
            is_apart = self._apart and key in self._apart
            in_flight = self._in_flight_by_key[key] = _InFlight(
                self._own_batcher() if is_apart else self._least_loaded(), bool(is_apart)
            )
        in_flight.count += 1
        return await in_flight.batcher.enqueue(request)

    async def drain(self) -> None:
        """Wait until no request waits or is in flight."""
        while serving := next((one for one in self._all_batchers() if one.is_serving), None):
            await serving.drain()

    def _all_batchers(self) -> Iterator[Batcher[Request, Result]]:
        yield from self._batchers
        for in_flight in self._in_flight_by_key.values():
            yield in_flight.batcher

    def _on_request_done(self, request: Request) -> None:
        key = self._key(request)
        in_flight = self._in_flight_by_key[key]
        in_flight.count -= 1
        if not in_flight.count:
            del self._in_flight_by_key[key]

    def _set_apart(self, waiting: Waiting[Request, Result]) -> None:
        """Move the requests of the keys that are apart now. No request of them is in flight."""
        if not self._apart:
            return
        for _ in range(len(waiting)):
            request, answer = waiting.popleft()
            in_flight = self._in_flight_by_key[key := self._key(request)]
            if key in self._apart:
                if not in_flight.is_apart:
                    in_flight.batcher, in_flight.is_apart = self._own_batcher(), True
                in_flight.batcher.enqueue_again(request, answer)
            else:
                waiting.append((request, answer))

    def _on_stuck(self, batcher: Batcher[Request, Result]) -> None:
        """Replace a batcher. Requests of the keys in its batch stay behind it, in their order."""
        self._stuck = [one for one in self._stuck if one.load]
        if batcher not in self._batchers or len(self._stuck) == MAX_STUCK:
            return
        successor = self._shared_batcher()
        self._batchers[self._batchers.index(batcher)] = successor
        self._stuck.append(batcher)
        keys = {self._key(request) for request, _ in batcher.in_flight}
        for _ in range(len(batcher.waiting)):
            request, answer = batcher.waiting.popleft()
            if (key := self._key(request)) in keys:
                batcher.waiting.append((request, answer))
            else:
                self._in_flight_by_key[key].batcher = successor
                successor.enqueue_again(request, answer)

    def _shared_batcher(self) -> Batcher[Request, Result]:
        return self._new_batcher(
            on_done=self._on_request_done, before_batch=self._set_apart, on_stuck=self._on_stuck
        )

    def _own_batcher(self) -> Batcher[Request, Result]:
        return self._new_batcher(on_done=self._on_request_done)

    def _least_loaded(self) -> Batcher[Request, Result]:
        """Return the first batcher with room, or else the one with the fewest requests."""
        for batcher in self._batchers:
            if batcher.load < self._spill_at:
                return batcher
        return min(self._batchers, key=lambda batcher: batcher.load)


class _InFlight(Generic[Request, Result]):
    """The batcher of one key, and the number of its requests that wait or are in flight."""

    __slots__ = ("batcher", "count", "is_apart")

    def __init__(self, batcher: Batcher[Request, Result], is_apart: bool) -> None:
        self.batcher = batcher
        self.is_apart = is_apart
        """Whether the batcher has no other key."""
        self.count = 0
