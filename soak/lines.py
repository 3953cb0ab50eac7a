"""The lines between the package and a PostgreSQL server, which can lose what is said on them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

CHUNK = 65_536


class Lines:
    """A socket that hands everything on to the server's, and the answers back, until told to
    swallow those: then what is asked is done, and nobody hears of it."""

    def __init__(self, folder: Path, server: Path) -> None:
        self.folder = folder
        self._server = server
        self._open: set[asyncio.StreamWriter] = set()
        self._swallowing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server

    async def up(self) -> None:
        self._listener = await asyncio.start_unix_server(
            self._serve, self.folder / self._server.name
        )

    async def down(self) -> None:
        self._listener.close()
        self._cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def lose_answers(self, seconds: float) -> int:
        """Swallow all answers for a time, then break all lines; how many there were."""
        self._swallowing = True
        try:
            await asyncio.sleep(seconds)
        finally:
            lines = len(self._open)
            self._cut()
            self._swallowing = False
        return lines

    def _cut(self) -> None:
        for client in self._open:
            client.transport.abort()

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
            asyncio.create_task(self._hand_on(reader, server)),
            asyncio.create_task(self._hand_on(answers, client)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self._open.discard(client)
        for way in (client, server):
            way.transport.abort()
        await asyncio.wait(ways)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self._swallowing and writer in self._open:
                    continue
                writer.write(chunk)
                await writer.drain()
