"""Gather the concurrent requests of many callers into batches."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic

from sessionsdb.engine.runner import Request, Result
from sessionsdb.engine.storage_errors import ONE_IS_BAD
from sessionsdb.engine.tasks import start_uncancelled
from sessionsdb.errors import StorageError

Serve = Callable[[list[Request]], Awaitable[Sequence[Result | Exception]]]
"""Serve a batch: return one result or exception for each request, in order."""

Waiting = deque[tuple[Request, asyncio.Future[Result]]]
"""The requests that wait, in the order of their arrival, with the futures of their results."""

STUCK_SECONDS = 0.25
"""A batch is stuck when it has been in flight for as long, or twice as long, with requests behind
it. Usually it waits for a lock that another transaction keeps."""


class Batcher(Generic[Request, Result]):
    """Serves single requests in batches of at most ``max_batch``, one batch at a time.

    With ``weight``, the requests of a batch weigh at most ``max_weight`` together. One that weighs
    more goes alone.

    A request is served at once when no batch is in flight. Otherwise it waits for that batch, and
    goes with all requests that have come meanwhile. A lone caller is never delayed, and every
    caller gets its result only after its batch is committed.

    A caller that is cancelled while its request waits takes the request back. A request in flight
    goes on without its caller. ``on_done`` is called once for each request, when it neither waits
    nor is in flight any more. ``before_batch`` is called with the waiting requests before a batch
    is made of them, and may remove some to enqueue them elsewhere. ``on_stuck`` is called with the
    batcher while its batch is stuck, and may do the same.
    """

    def __init__(
        self,
        serve: Serve[Request, Result],
        *,
        max_batch: int = 500,
        weight: Callable[[Request], int] | None = None,
        max_weight: int = 0,
        on_done: Callable[[Request], None] | None = None,
        before_batch: Callable[[Waiting[Request, Result]], None] | None = None,
        on_stuck: Callable[[Batcher[Request, Result]], None] | None = None,
    ) -> None:
        self._serve = serve
        self._max_batch = max_batch
        self._weight = weight
        self._max_weight = max_weight
        self._on_done = on_done
        self._before_batch = before_batch
        self._on_stuck = on_stuck
        self.waiting: Waiting[Request, Result] = deque()
        self.in_flight: Sequence[tuple[Request, asyncio.Future[Result]]] = ()
        self._batches = 0
        """How many batches were made."""
        self._timer: asyncio.TimerHandle | None = None
        """Rings while requests wait, to look whether the batch is stuck."""
        self._server: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        """How many requests wait or are in flight."""
        return len(self.waiting) + len(self.in_flight)

    @property
    def is_serving(self) -> bool:
        """Whether requests wait or are in flight, or an iteration ago they were."""
        return self._server is not None and not self._server.done()

    async def submit(self, request: Request) -> Result:
        """Return the result of a request, or raise the exception that it failed with."""
        return await self.enqueue(request)

    def enqueue(self, request: Request) -> asyncio.Future[Result]:
        """Let a request wait for the next batch, and return the future of its result."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.enqueue_again(request, answer)
        return answer

    def enqueue_again(self, request: Request, answer: asyncio.Future[Result]) -> None:
        """Let a request that another batcher gave away wait for the next batch."""
        self.waiting.append((request, answer))
        # A server that the shutdown of the event loop cancelled before its first step never runs.
        if self._server is None or self._server.cancelling():
            self._server = start_uncancelled(self._serve_all())
            if self._timer is not None:  # perhaps of an event loop that was closed
                self._timer.cancel()
                self._timer = None
        elif self._timer is None and self._on_stuck is not None:
            self._watch()

    async def drain(self) -> None:
        """Wait until no request waits or is in flight."""
        if self._server is not None:
            await asyncio.wait((self._server,))

    async def _serve_all(self) -> None:
        try:
            while batch := self._next_batch():
                self.in_flight = batch
                self._batches += 1
                try:
                    await self._serve_batch(batch)
                finally:
                    self.in_flight = ()
                    if self._on_done is not None:
                        for request, _ in batch:
                            self._on_done(request)
                # Let answered callers submit their next requests, so that they go with those that
                # wait. Otherwise a small batch and a large one take turns. A full batch begins at
                # once: the callers work while it runs.
                if len(self.waiting) < self._max_batch:
                    await asyncio.sleep(0)
        finally:  # in the same step as the last check: the next request starts a new task
            if self._server is asyncio.current_task():
                self._server = None

    # The timer is not set for each batch and cancelled at its end: that would cost microseconds.

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(STUCK_SECONDS, self._look, self._batches)

    def _look(self, batches: int) -> None:
        """Tell if the batch is stuck: it is the same as when the timer was set."""
        self._timer = None
        if self.waiting and self.in_flight and batches == self._batches:
            assert self._on_stuck is not None
            self._on_stuck(self)
        if self.waiting:
            self._watch()

    def _next_batch(self) -> list[tuple[Request, asyncio.Future[Result]]]:
        if self._before_batch is not None:
            self._before_batch(self.waiting)
        batch: list[tuple[Request, asyncio.Future[Result]]] = []
        total = 0
        while self.waiting and len(batch) < self._max_batch:
            request, answer = self.waiting.popleft()
            if not answer.done():
                if self._weight is not None:
                    total += self._weight(request)
                    if total > self._max_weight and batch:
                        self.waiting.appendleft((request, answer))
                        break
                batch.append((request, answer))
            elif self._on_done is not None:
                self._on_done(request)
        return batch

    async def _serve_batch(self, batch: list[tuple[Request, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._serve([request for request, _ in batch])
            answered = list(zip(batch, results, strict=True))
        except ONE_IS_BAD as error:
            if len(batch) == 1:
                _fail_all(batch, error)
            else:  # one request is bad: served one by one, it fails alone
                for entry in batch:
                    await self._serve_batch([entry])
            return
        except Exception as error:
            _fail_all(batch, error)
            return
        except BaseException:
            for _, answer in batch:
                answer.cancel()
            raise
        for (_, answer), result in answered:
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(copy_of(result))
            else:
                answer.set_result(result)


def _fail_all(batch: list[tuple[Request, asyncio.Future[Result]]], error: Exception) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(copy_of(error))


def copy_of(error: Exception) -> Exception:
    """Return a copy for one caller: an error's traceback grows each time it is raised."""
    if not isinstance(error, StorageError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
