"""Handlers for workers of the command line."""

from __future__ import annotations

from sessionsdb import Turn


async def fail(turn: Turn) -> None:
    raise RuntimeError("it went wrong")
