"""The transport over standard input and output: one client and one caller."""

from __future__ import annotations

import json
from typing import Any

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

from sessionsdb.database import SessionsDB
from sessionsdb.mcp.callers import Caller
from sessionsdb.mcp.server import MAX_WAIT_SECS, SessionsServer, register_caller


async def serve_stdio(
    db: SessionsDB, caller: Caller, *, max_wait_secs: float = MAX_WAIT_SECS
) -> None:
    """Serve until the client closes standard input.

    Meanwhile other writes to standard output go to standard error.
    """
    await register_caller(db, caller)
    server = SessionsServer(db, lambda _context: caller, max_wait_secs=max_wait_secs).build()
    async with stdio_server() as (reading, writing):
        readable_sender, readable = anyio.create_memory_object_stream[SessionMessage | Exception]()

        async def answer_unreadable() -> None:
            # The SDK drops a line that it can't read, and its client would wait without end.
            async with reading, readable_sender:
                async for item in reading:
                    if not isinstance(item, Exception):
                        await readable_sender.send(item)
                    elif (refusal := _refusal(item)) is not None:
                        await writing.send(SessionMessage(refusal))

        async with readable, anyio.create_task_group() as tasks:
            tasks.start_soon(answer_unreadable)
            await server.run(readable, writing, server.create_initialization_options())
            tasks.cancel_scope.cancel()


def _refusal(error: Exception) -> JSONRPCError | None:
    """Return the answer to a line that is no message, ``None`` if it wants no answer."""
    line = _line_of(error)
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return _error(None, PARSE_ERROR, "the message is not JSON")
    if not isinstance(message, dict):
        return _error(None, INVALID_REQUEST, "the message is not a JSON-RPC request")
    id = message.get("id")
    if isinstance(id, bool) or not isinstance(id, (str, int)):
        # Without an id it is a notification, which gets no answer.
        return _error(None, INVALID_REQUEST, "the id is not text or a number") if id else None
    if _holds_surrogate(line):
        id = id if not isinstance(id, str) or not _is_half(id) else None
        text = "the message holds half of a surrogate pair, such as \\ud800, which is no character"
        return _error(id, PARSE_ERROR, text)
    return _error(id, INVALID_REQUEST, "the message is not a JSON-RPC request")


def _line_of(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return ""
    given = error.errors(include_url=False, include_context=False)[0]["input"]
    return given if isinstance(given, str) else json.dumps(given, default=str)


def _holds_surrogate(line: str) -> bool:
    return _is_half(json.dumps(json.loads(line), ensure_ascii=False))


def _is_half(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _error(id: Any, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=id, error=ErrorData(code=code, message=message))
