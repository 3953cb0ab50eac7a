"""A long import over HTTP: it takes the time that its lines take, and a slow client does not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import uvicorn

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.http import connections
from sessionsdb.web.server import Protocol, application

SECONDS = 0.4
"""The deadline of a request, in these tests."""

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", SECONDS)


@pytest.fixture
async def connect(db: SessionsDB) -> AsyncIterator[Callable[[], asyncio.Future[Client]]]:
    """Connects to a server of the database."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application(db), http=Protocol, ws="none", lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()
    yield lambda: asyncio.ensure_future(asyncio.open_connection(host, port))
    server.should_exit = True
    server.force_exit = True
    await serving
    listener.close()


def head(length: int, path: str = "/api/v1/import") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/jsonl\r\n"
        f"content-length: {length}\r\nconnection: close\r\n\r\n"
    ).encode()


def chat(id: str, size: int) -> bytes:
    message = {"role": "user", "content": "x" * size}
    return json.dumps({"session_id": id, "messages": [message]}).encode() + b"\n"


async def test_an_import_may_take_longer_than_other_requests(
    db: SessionsDB, connect: Callable[[], asyncio.Future[Client]]
) -> None:
    reader, writer = await connect()
    lines = [chat(f"s-{n:03}", 10_000) for n in range(40)]
    writer.write(head(sum(map(len, lines))))
    for line in lines:
        writer.write(line)
        await writer.drain()
        await asyncio.sleep(4 * SECONDS / len(lines))  # the pace of the client
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert answer.count(b'"saved"') == len(lines)
    assert len(await db.store.list()) == len(lines)
    writer.close()


async def test_an_import_waits_for_a_database_that_is_busy(
    db: SessionsDB, database: Database, connect: Callable[[], asyncio.Future[Client]]
) -> None:
    lines = [chat(f"s-{n:03}", 3_000) for n in range(400)]
    async with SessionsDB(database.url) as other:
        reader, writer = await connect()
        async with other.engine.begin() as held:
            if database.kind == "postgresql":
                await held.exec_driver_sql("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
            writer.write(head(sum(map(len, lines))) + b"".join(lines))
            await asyncio.sleep(4 * SECONDS)  # the time that the lock is held
        async with asyncio.timeout(30):
            answer = await reader.read()
    assert answer.count(b'"saved"') == len(lines)
    writer.close()


@pytest.mark.parametrize("path", ["/api/v1/import", "/api/v1/sessions"])
async def test_a_client_that_sends_byte_by_byte_is_cut_off(
    connect: Callable[[], asyncio.Future[Client]], path: str
) -> None:
    reader, writer = await connect()
    writer.write(head(100_000, path))

    async def trickle() -> None:
        for byte in chat("s", 100_000):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(SECONDS / 20)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionError):
            await asyncio.gather(reader.read(), trickling)
    trickling.cancel()
    writer.close()


async def test_an_import_that_was_refused_gets_no_more_time(
    connect: Callable[[], asyncio.Future[Client]],
) -> None:
    _reader, writer = await connect()
    writer.write(head(10**9, "/api/v1/import").replace(b"application/jsonl", b"text/plain"))

    async def send() -> None:
        while True:
            writer.write(chat("s", 30_000))
            await writer.drain()
            await asyncio.sleep(SECONDS / 20)

    sending = asyncio.create_task(send())
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionError):
            await sending
    writer.close()
