"""A proxy between the package and a PostgreSQL server, which can lose the answers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

CHUNK = 65_536


class SocketProxy:
    """A socket that passes requests to the server and answers back. ``lose_answers`` makes it drop
    the answers: the server does the work, and the client never learns of it."""

    def __init__(self, folder: Path, server: Path) -> None:
        self.folder = folder
        self._server = server
        self._open: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        """Clients whose answers are dropped."""
        self._word: bytes | None = None
        """A client that sends this word is muted."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server

    async def start(self) -> None:
        self._listener = await asyncio.start_unix_server(
            self._serve, self.folder / self._server.name
        )

    async def stop(self) -> None:
        self._listener.close()
        for client in self._open:
            client.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def lose_answers(self, word: bytes, seconds: float) -> int:
        """For ``seconds``, drop the answers of each connection that sends the word. Then break the
        connections, and return their number."""
        self._word = word
        try:
            await asyncio.sleep(seconds)
        finally:
            self._word = None
            muted, self._muted = self._muted, set()
            for client in muted:
                client.transport.abort()
        return len(muted)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            answers, server = await asyncio.open_unix_connection(self._server)
        except OSError:
            client.transport.abort()
            return
        self._open.add(client)
        ways = [
            asyncio.create_task(self._ask(reader, server, client)),
            asyncio.create_task(self._answer(answers, client)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self._open.discard(client)
        for way in (client, server):
            way.transport.abort()
        await asyncio.wait(ways)

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self._word is not None and self._word in chunk:
                    self._muted.add(client)
                server.write(chunk)
                await server.drain()

    async def _answer(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if client in self._muted:
                    continue
                client.write(chunk)
                await client.drain()
