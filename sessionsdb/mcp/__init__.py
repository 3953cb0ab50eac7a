"""An MCP server for the session tools, over stdio and streamable HTTP.

It needs the official SDK: ``pip install 'sessionsdb[mcp]'``.
"""

from sessionsdb.mcp.callers import Caller, Tokens
from sessionsdb.mcp.http import application, serve_http
from sessionsdb.mcp.server import SessionsServer
from sessionsdb.mcp.stdio import serve_stdio

__all__ = ["Caller", "SessionsServer", "Tokens", "application", "serve_http", "serve_stdio"]
