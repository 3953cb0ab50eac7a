"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], Awaitable[bool] | bool], *, within: float = 10.0) -> None:
    """Look again and again until ``condition`` holds; fails after ``within`` seconds."""
    deadline = time.monotonic() + within
    while True:
        held = condition()
        if not isinstance(held, bool):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, f"{condition} did not come to hold in {within} s"
        await asyncio.sleep(0.005)
