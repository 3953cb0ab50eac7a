"""The MCP server in a separate process, and clients of the SDK for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from devtools.databases import Database

COMMAND = [sys.executable, "-m", "sessionsdb.cli"]


def over_stdio(database: Database, *arguments: str, mode: str = "auto") -> Client:
    """Return a client that starts the server."""
    server = StdioServerParameters(
        command=COMMAND[0], args=[*COMMAND[1:], "--url", database.url, "mcp", *arguments]
    )
    return Client(server, mode=mode, read_timeout_seconds=60)


@contextmanager
def http_server(
    database: Database, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run the server over HTTP on a free port of this machine, and yield its URL."""
    process = subprocess.Popen(
        [*COMMAND, "--url", database.url, "mcp", "--http", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )
    assert process.stderr is not None
    try:
        while not (first := process.stderr.readline()).startswith("serving") and first:
            pass  # a warning about the file of the tokens
        found = re.fullmatch(r"serving MCP on (http://\S+)\n", first)
        assert found, first + process.stderr.read()
        yield found[1]
    finally:
        process.terminate()
        rest = process.communicate(timeout=20)[1]
    assert "Traceback" not in rest, rest
    assert process.returncode in (0, -15), (process.returncode, rest)


@asynccontextmanager
async def over_http(
    url: str, *, token: str | None = None, mode: str = "auto"
) -> AsyncIterator[Client]:
    """Connect a client to a running server."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        transport: Any = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, read_timeout_seconds=60) as client:
            yield client
