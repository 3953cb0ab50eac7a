"""The transport over standard input and output: one client and one caller."""

from __future__ import annotations

from mcp.server.stdio import stdio_server

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
        await server.run(reading, writing, server.create_initialization_options())
