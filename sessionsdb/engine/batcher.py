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
    is made of them, and may remove some to enqueue them elsewhere.
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
    ) -> None:
        self._serve = serve
        self._max_batch = max_batch
        self._weight = weight
        self._max_weight = max_weight
        self._on_done = on_done
        self._before_batch = before_batch
        self._waiting: Waiting[Request, Result] = deque()
        self._in_flight = 0
        self._server: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        """How many requests wait or are in flight."""
        return len(self._waiting) + self._in_flight

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
        self._waiting.append((request, answer))
        # A server that the shutdown of the event loop cancelled before its first step never runs.
        if self._server is None or self._server.cancelling():
            self._server = start_uncancelled(self._serve_all())

    async def drain(self) -> None:
        """Wait until no request waits or is in flight."""
        if self._server is not None:
            await asyncio.wait((self._server,))

    async def _serve_all(self) -> None:
        try:
            while batch := self._next_batch():
                self._in_flight = len(batch)
                try:
                    await self._serve_batch(batch)
                finally:
                    self._in_flight = 0
                    if self._on_done is not None:
                        for request, _ in batch:
                            self._on_done(request)
                # Let answered callers submit their next requests, so that they go with those that
                # wait. Otherwise a small batch and a large one take turns. A full batch begins at
                # once: the callers work while it runs.
                if len(self._waiting) < self._max_batch:
                    await asyncio.sleep(0)
        finally:  # in the same step as the last check: the next request starts a new task
            if self._server is asyncio.current_task():
                self._server = None

    def _next_batch(self) -> list[tuple[Request, asyncio.Future[Result]]]:
        if self._before_batch is not None:
            self._before_batch(self._waiting)
        batch: list[tuple[Request, asyncio.Future[Result]]] = []
        total = 0
        while self._waiting and len(batch) < self._max_batch:
            request, answer = self._waiting.popleft()
            if not answer.done():
                if self._weight is not None:
                    total += self._weight(request)
                    if total > self._max_weight and batch:
                        self._waiting.appendleft((request, answer))
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
