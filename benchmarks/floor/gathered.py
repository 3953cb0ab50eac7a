"""Serve requests of many callers in batches, with the least code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any


class Gathered:
    """Serves all requests that arrive while the batch before runs."""

    def __init__(self, serve: Callable[[list[Any]], Awaitable[Sequence[Any]]]) -> None:
        self._serve = serve
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._server: asyncio.Task[None] | None = None

    async def submit(self, request: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._server is None:
            self._server = asyncio.create_task(self._serve_all())
        return await future

    async def _serve_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._serve([request for request, _ in batch])
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)
            # Callers with an answer make their next request, which joins the waiting ones. Without
            # this, small and large batches alternated.
            await asyncio.sleep(0)
        self._server = None
