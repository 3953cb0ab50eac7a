"""Handlers for a first try of a worker."""

from __future__ import annotations

from sessionsdb.worker.turn import Turn


async def echo(turn: Turn) -> str:
    """Reply with the text of the turn: an agent without a model."""
    return f"echo: {turn.text}"
