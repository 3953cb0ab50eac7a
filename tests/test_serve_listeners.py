"""A thousand listeners of one server process, and clients that do not read or do not finish."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB

LISTENERS = 1_000
SESSIONS = 10
DESCRIPTORS = 4 * LISTENERS

IDLE_SECONDS = 2.0
MAX_IDLE_SHARE = 0.25
"""The processor time of an idle server for each second. It was 0.02 to 0.04 in three runs."""

MAX_EVENT_SECONDS = 3.0
"""The processor time for one event to each listener. It was 0.13 to 0.18 s in three runs."""

MAX_LISTENER_BYTES = 150_000
"""The memory of one listener. It was 41 to 42 KB in three runs."""

STUCK = 20
WRITTEN = 60
MESSAGE_BYTES = 100_000

MAX_STUCK_SHARE = 0.25
"""The memory for messages that clients do not read, once all buffers are full.

A server that keeps them has a share of 1, which is 120 MB. It was 3 to 7 MB in three runs.
"""


@pytest.fixture
def kind() -> str:
    """The listeners are connections. What they cost at the database is in test_live_follow_hub."""
    return "sqlite"


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Enough descriptors for the connections of this process and of the server that it starts."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Server:
    """A server process, its port, and what it costs."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.port = port
        self._process = psutil.Process(process.pid)

    def memory(self) -> int:
        return int(self._process.memory_info().rss)

    def processor_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


@asynccontextmanager
async def serving(database: Database) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sessionsdb", "--url", database.url),
        *("serve", "--port", "0", "--rate", "0"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        first = await asyncio.wait_for(process.stderr.readline(), 60)
        yield Server(process, int(first.rpartition(b":")[2]))
    finally:
        process.kill()
        await process.communicate()


class Client:
    """A connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, request: str, *, buffer: int | None = None) -> Client:
        """Connect and send a request. ``buffer``: the bytes that the system keeps."""
        connection = socket.socket()
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=buffer or 2**16)
        writer.write(request.encode())
        return cls(reader, writer)

    async def read_until(self, text: bytes) -> None:
        """Read until a text was received."""
        kept = b""
        async with asyncio.timeout(60):
            while text not in kept:
                data = await self._reader.read(2**16)
                assert data, "the server closed the connection"
                kept = kept[-len(text) :] + data

    async def close(self) -> None:
        self._writer.transport.abort()
        await self._writer.wait_closed()


async def connect(
    stack: AsyncExitStack, port: int, request: str, *, buffer: int | None = None
) -> Client:
    client = await Client.connect(port, request, buffer=buffer)
    stack.push_async_callback(client.close)
    return client


def large(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"{number} {'x' * MESSAGE_BYTES}"}


def following(id: str) -> str:
    """The request that follows a session from its start."""
    path = f"/api/v1/sessions/{id}/events?after=start"
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def test_a_thousand_listeners_cost_little_and_each_has_each_event(
    db: SessionsDB, database: Database
) -> None:
    ids = [f"s{number}" for number in range(SESSIONS)]
    for id in ids:
        await db.store.append(id, [{"role": "user", "content": "first"}])
    async with serving(database) as server, AsyncExitStack() as stack:
        first = await connect(stack, server.port, following(ids[0]))
        await first.read_until(b"event: idle")
        before = server.memory()
        listeners: list[Client] = []
        while len(listeners) < LISTENERS:
            part = [await connect(stack, server.port, following(id)) for id in ids * 10]
            await asyncio.gather(*(one.read_until(b"event: idle") for one in part))
            listeners += part
        assert (server.memory() - before) / LISTENERS < MAX_LISTENER_BYTES

        idle_before = server.processor_seconds()
        await asyncio.sleep(IDLE_SECONDS)
        idle = server.processor_seconds() - idle_before
        assert idle < IDLE_SECONDS * MAX_IDLE_SHARE

        event_before = server.processor_seconds()
        for id in ids:
            await db.store.append(id, [{"role": "user", "content": "second"}])
        await asyncio.gather(*(one.read_until(b"second") for one in listeners))
        assert server.processor_seconds() - event_before < MAX_EVENT_SECONDS


async def test_clients_that_do_not_read_or_do_not_finish_cost_a_bounded_amount(
    db: SessionsDB, database: Database
) -> None:
    async def write(numbers: range) -> None:
        """Write messages, and wait until the client that reads has the last one."""
        for start in numbers[::10]:
            await db.store.append("chat", [large(number) for number in range(start, start + 10)])
        await quick.read_until(f'"content":"{numbers[-1]} x'.encode())

    await db.store.append("chat", [{"role": "user", "content": "first"}])
    async with serving(database) as server, AsyncExitStack() as stack:
        quick = await connect(stack, server.port, following("chat"))
        await quick.read_until(b"event: idle")
        stuck = [
            await connect(stack, server.port, following("chat"), buffer=4_096) for _ in range(STUCK)
        ]
        await asyncio.gather(*(one.read_until(b"event: idle") for one in stuck))
        for _ in range(100):
            await connect(stack, server.port, "GET /api/v1/sessions HTTP/1.1\r\nHost: 127")
        await write(range(WRITTEN))
        filled = server.memory()
        await write(range(WRITTEN, 2 * WRITTEN))
        grown = server.memory() - filled
        assert grown < STUCK * WRITTEN * MESSAGE_BYTES * MAX_STUCK_SHARE
        # A client that reads again misses nothing: the events stayed in the database.
        for number in range(2 * WRITTEN):
            await stuck[0].read_until(f'"content":"{number} x'.encode())
