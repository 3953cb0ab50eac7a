"""Handlers for trying things out."""

from __future__ import annotations

from sessionsdb.worker.turn import Turn


async def echo(turn: Turn) -> str:
    """Answers with what arrived: an agent without a model."""
    return f"echo: {turn.text}"
