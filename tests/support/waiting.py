"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")


async def until(condition: Callable[[], T | Awaitable[T]], *, within: float = 20.0) -> T:
    """Call ``condition`` repeatedly until its value is true, and return the value. Fails after
    ``within`` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return cast(T, value)
        assert time.monotonic() < deadline, f"{condition} was not true within {within} s"
        await asyncio.sleep(0.005)
