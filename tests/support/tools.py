"""Calls of the session tools, and a worker that runs beside a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sessionsdb import SessionsDB, handlers
from sessionsdb.tools import SessionsTool, ToolContext, ToolDefinition, ToolResult
from sessionsdb.worker import Handler


def definitions() -> list[ToolDefinition]:
    """The definitions of the tools. They need no broker."""
    return SessionsTool(None).definitions()


async def register_sessions(db: SessionsDB, *ids: str, parent: str | None = None) -> None:
    for id in ids:
        await db.broker.register(id, channel="test", peer="tester", parent=parent)


async def call(tool: SessionsTool, name: str, /, **input: Any) -> ToolResult:
    return await tool.execute("call-1", name, input)


async def call_ok(tool: SessionsTool, name: str, /, **input: Any) -> dict[str, Any]:
    """Call a tool and return its object. Asserts success, and that the text is equal to it."""
    result = await call(tool, name, **input)
    assert not result.is_error, result.content
    assert result.structured == json.loads(result.content)
    return result.structured


async def call_refused(tool: SessionsTool, name: str, /, **input: Any) -> str:
    """Call a tool and return the text of its error."""
    result = await call(tool, name, **input)
    assert result.is_error, result.content
    assert result.structured is None
    return result.content


@asynccontextmanager
async def running_worker(db: SessionsDB, handler: Handler = handlers.echo) -> AsyncIterator[None]:
    """Run a worker inside the block."""
    worker = db.worker(handler)
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        await worker.stop(grace=5)
        await running


__all__ = [
    "ToolContext",
    "call",
    "call_ok",
    "call_refused",
    "register_sessions",
    "running_worker",
]
