"""Many callers, one statement: the coalescer gathers what is asked for in the same moment."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from sessionsdb.engine.storage_errors import StatementRefused
from sessionsdb.errors import StorageError

Request = TypeVar("Request")
Result = TypeVar("Result")

Serve = Callable[[list[Request]], Awaitable[Sequence[Result | Exception]]]


class Batcher(Generic[Request, Result]):
    """Serves single requests in batches.

    A request goes at once when nothing is in flight; otherwise it waits for the batch in flight
    and goes with all that gathered meanwhile. A lone caller is never delayed, and every caller
    is told only when its batch is committed.

    ``serve`` answers each request of a batch with a result or with the exception it failed with.
    A caller cancelled before its batch went takes its request with it; after that the batch goes
    on without it. ``over`` is told of every request once, when it neither waits nor is in flight
    any more.
    """

    def __init__(
        self,
        serve: Serve[Request, Result],
        *,
        most: int = 500,
        over: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self._serve = serve
        self._most = most
        self._over = over
        self._waiting: deque[tuple[Request, asyncio.Future[Result]]] = deque()
        self._in_flight = 0
        self._server: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        """How many requests wait or are in flight."""
        return len(self._waiting) + self._in_flight

    async def submit(self, request: Request) -> Result:
        """The result of this request. Raises what it failed with."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._server is None:
            self._server = asyncio.create_task(self._serve_all())
        return await answer

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
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
                    for request, _ in batch:
                        self._over(request)
                # Those who have been answered may ask again at once, and go with those who wait:
                # else a small batch and a large one take turns.
                await asyncio.sleep(0)
        finally:  # at once: who asks from now on starts another
            self._server = None

    def _next_batch(self) -> list[tuple[Request, asyncio.Future[Result]]]:
        batch: list[tuple[Request, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._most:
            request, answer = self._waiting.popleft()
            if answer.done():
                self._over(request)
            else:
                batch.append((request, answer))
        return batch

    async def _serve_batch(self, batch: list[tuple[Request, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._serve([request for request, _ in batch])
            answered = list(zip(batch, results, strict=True))
        except StatementRefused as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:  # one of them is bad, and it shall fail alone
                for one in batch:
                    await self._serve_batch([one])
            return
        except Exception as error:
            _fail(batch, error)
            return
        except BaseException:
            for _, answer in batch:
                answer.cancel()
            raise
        for (_, answer), result in answered:
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(_own_copy(result))
            else:
                answer.set_result(result)


def _fail(batch: list[tuple[Request, asyncio.Future[Result]]], error: Exception) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(_own_copy(error))


def _own_copy(error: Exception) -> Exception:
    """A copy of the error for one of the many that get it: a traceback grows as it is raised."""
    if not isinstance(error, StorageError):
        return error
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
