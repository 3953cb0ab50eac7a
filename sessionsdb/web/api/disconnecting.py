"""End a long read whose client is gone, so that it holds no place of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response

T = TypeVar("T")


async def while_connected(request: Request, reading: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of ``reading``, or ``None`` if the client goes before.

    ``reading`` is cancelled then, so it must write nothing. The request must have no body that
    is still to be read.
    """
    task = asyncio.ensure_future(reading)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait([task, gone])


def unheard() -> Response:
    """Return the response to a client that is gone. It is sent to nobody."""
    return Response(status_code=499)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
