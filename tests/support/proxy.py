"""A proxy between a client and a PostgreSQL server, which reads statements and cuts connections.

It parses as much of the protocol as it needs to find the statements:
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import make_url

from devtools.databases import Database

When = Literal["before", "while", "after"]
"""The moment of a cut: before the statement reaches the server, while the server runs it, or after
it is done and before its answer arrives."""


@dataclass
class _Connection:
    """One client's connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    statements: dict[bytes, str] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    bound: bytes = b""
    swallowing: bool = False
    in_transaction: bool = False

    def close(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """Stands before one database's server, on a TCP port of its own."""

    def __init__(self, database: Database) -> None:
        url = make_url(database.url)
        self._socket: str | None = None
        self._address = (url.host, url.port)
        if url.host is None:
            self._socket = f"{url.query['host']}/.s.PGSQL.{url.query.get('port', 5432)}"
        self._database, self._user = url.database, url.username
        schema = url.query.get("schema")
        self._query = "ssl=disable" + (f"&schema={quote(str(schema))}" if schema else "")
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._connections: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: tuple[str, When] | None = None
        self._cuts_left = 0
        self._for_good = False
        self.cuts = 0
        self.executed: list[str] = []
        self.outside: list[str] = []
        """Statements that were prepared or executed outside of a transaction."""
        self.hanging_up = False
        """Close each new connection, as a load balancer does whose server is down."""

    @property
    def executed_by_connection(self) -> list[list[str]]:
        """The statements of each connection, in their order."""
        return [line.executed for line in self._connections]

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"postgresql://{self._user}@127.0.0.1:{self._port}/{self._database}?{self._query}"

    def cut(self, statement: str, when: When, *, times: int = 1, for_good: bool = False) -> None:
        """Cut the connection at the next ``times`` statements that contain this text. ``for_good``
        refuses all other connections from that moment on."""
        self._fault, self._cuts_left, self.cuts = (statement, when), times, 0
        self._for_good = for_good

    async def up(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    def _refuse_all_but(self, cut: _Connection) -> None:
        assert self._listener is not None
        self._listener.close()
        for line in self._connections:
            if line is not cut:
                line.close()

    async def down(self) -> None:
        """Break all connections and refuse new ones, as when the server stops."""
        assert self._listener is not None
        self._listener.close()
        while self._tasks:
            # Repeated: a client may have connected while the listener closed.
            for line in self._connections:
                line.close()
            self._connections.clear()
            await asyncio.wait(self._tasks, timeout=0.05)
        await self._listener.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.hanging_up:
            writer.transport.abort()
            return
        answers, server = await (
            asyncio.open_connection(*self._address)
            if self._socket is None
            else asyncio.open_unix_connection(self._socket)
        )
        line = _Connection(writer, server)
        self._connections.append(line)
        hearing = [
            asyncio.create_task(_until_closed(self._read_client(line, reader))),
            asyncio.create_task(_until_closed(self._read_server(line, answers))),
        ]
        await asyncio.wait(hearing, return_when=asyncio.FIRST_COMPLETED)
        if not line.swallowing:
            line.close()
        await asyncio.wait(hearing)
        line.close()

    async def _read_client(self, line: _Connection, reader: asyncio.StreamReader) -> None:
        [size] = struct.unpack("!I", head := await reader.readexactly(4))
        line.server.write(head + await reader.readexactly(size - 4))
        while True:
            kind, message, body = await _message(reader)
            statement = _statement(line, kind, body)
            if statement is not None and statement.startswith("BEGIN"):
                line.in_transaction = True
            elif kind in b"PBE" and not line.in_transaction:
                self.outside.append(statement or repr(body[:80]))
            if statement is not None:
                self.executed.append(statement)
                line.executed.append(statement)
                when = self._due(statement)
                if when is not None and self._for_good:
                    self._refuse_all_but(line)
                if when == "before":
                    return
                if when is not None:
                    line.swallowing = True
                    line.server.write(message)
                    if kind == b"E":
                        line.server.write(b"S\0\0\0\4")
                    if when == "while":
                        line.client.transport.abort()
                    return
            line.server.write(message)
            await line.server.drain()

    async def _read_server(self, line: _Connection, answers: asyncio.StreamReader) -> None:
        while True:
            kind, message, body = await _message(answers)
            if kind == b"Z":
                line.in_transaction = body != b"I"
            if not line.swallowing:
                line.client.write(message)
                await line.client.drain()
            elif kind == b"Z":  # done, but the client gets no answer
                line.close()
                return

    def _due(self, statement: str) -> When | None:
        if self._fault is None or self._cuts_left == 0 or self._fault[0] not in statement:
            return None
        self._cuts_left -= 1
        self.cuts += 1
        return self._fault[1]


@asynccontextmanager
async def proxy_to(database: Database) -> AsyncIterator[Proxy]:
    proxy = Proxy(database)
    await proxy.up()
    try:
        yield proxy
    finally:
        await proxy.down()


async def _until_closed(hearing: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await hearing


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bytes]:
    head = await reader.readexactly(5)
    body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
    return head[:1], head + body, body


def _statement(line: _Connection, kind: bytes, body: bytes) -> str | None:
    """The statement that this message makes the server execute, if any."""
    if kind == b"P":
        name, sql, _ = body.split(b"\0", 2)
        line.statements[name] = sql.decode()
    elif kind == b"B":
        line.bound = body.split(b"\0", 2)[1]
    elif kind == b"E":
        return line.statements[line.bound]
    elif kind == b"Q":
        return body.rstrip(b"\0").decode()
    return None
