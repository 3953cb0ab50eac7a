"""Requests of many callers, served together: as little as can be written for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any


class Gathered:
    """Serves what gathers while the batch before is under way."""

    def __init__(self, serve: Callable[[list[Any]], Awaitable[Sequence[Any]]]) -> None:
        self._serve = serve
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._busy = False

    async def submit(self, request: Any) -> Any:
        if not self._busy:  # alone: no task and no future is needed
            self._busy = True
            try:
                [answer] = await self._serve([request])
            finally:
                if self._waiting:
                    asyncio.create_task(self._serve_all())  # noqa: RUF006
                else:
                    self._busy = False
            return answer
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
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
        self._busy = False
