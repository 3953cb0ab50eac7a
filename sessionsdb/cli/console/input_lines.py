"""Read the lines of a file or a pipe in constant memory, however long a line is."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from sessionsdb import InvalidArgument
from sessionsdb.admin.transcript_import import Line
from sessionsdb.cli.console import foreign_input
from sessionsdb.cli.console.gunzip import Gunzip

CHUNK_BYTES = 256 * 1024


class LineSource:
    """A stream that is read line by line."""

    def __init__(self, stream: BinaryIO, name: str = "-") -> None:
        self._stream = stream
        self._name = name
        self._unread = b""  # read, and to be read again
        self._unread_raw = b""  # of the same, what is not decompressed yet
        self._gunzip: Gunzip | None = None
        self._file: int | None
        try:
            self._file = stream.fileno()
        except (OSError, ValueError):  # a stream without a file descriptor
            self._file = None
        mode = None if self._file is None else os.fstat(self._file).st_mode
        # A regular file is always ready. A pipe or a terminal can block, so they are waited for.
        self._waits = mode is not None and not stat.S_ISREG(mode)
        self.size: int | None = None
        """The number of bytes in a regular file, else ``None``. ``None`` for gzip once it began."""
        if self._file is not None and mode is not None and stat.S_ISREG(mode):
            self.size = os.fstat(self._file).st_size

    async def lines(self, max_bytes: int) -> AsyncIterator[Line]:
        """Yield every line without its line end. A line over ``max_bytes`` has no text.

        Raises ``InvalidArgument`` if the input does not begin JSON lines.
        """
        head = await self._read_head()
        foreign_input.refuse_foreign(head, self._name)
        async for line in self._split(head, max_bytes):
            yield line

    async def beginning(self, most: int) -> foreign_input.Beginning:
        """Tell what the input is, and decompress gzip from here on.

        The other methods read the same bytes again: the first lines of a pipe, or the first
        ``CHUNK_BYTES`` of a file. A longer first line is read whole, up to ``most`` bytes.
        """
        first = await self._read()
        self._unread_raw = first
        if first.startswith(foreign_input.GZIP):
            self.size = None
            self._gunzip = Gunzip(self._read_raw, foreign_input.shown(self._name), CHUNK_BYTES)
        head = await self._read_head()
        while len(head) <= most and b"\n" not in head:
            chunk = await self._read()
            if not chunk:
                break
            head += chunk
        self._unread = head
        return foreign_input.beginning_of(head)

    async def whole(self, most: int) -> bytes:
        """Return all of the input. Raises ``InvalidArgument`` if it is over ``most`` bytes.

        The error does not name the input.
        """
        kept = bytearray()
        while chunk := await self._read():
            kept += chunk
            if len(kept) > most:
                raise InvalidArgument(
                    f"is larger than {most // 2**20} MiB; --max-file-mib raises the limit"
                )
        return bytes(kept)

    def push_back(self, text: bytes) -> None:
        """Make the other methods read ``text`` again, before the rest of the input."""
        self._unread = text + self._unread

    async def lines_of_text(self, max_bytes: int) -> AsyncIterator[Line]:
        """Yield every line as soon as it has come, whatever the input is."""
        async for line in self._split(await self._read(), max_bytes):
            yield line

    async def _split(self, chunk: bytes, max_bytes: int) -> AsyncIterator[Line]:
        kept, overlong, number, end = bytearray(), False, 0, 0
        while chunk:
            *finished, rest = chunk.split(b"\n")
            for part in finished:
                number, end = number + 1, end + len(part) + 1
                overlong = overlong or len(kept) + len(part) > max_bytes
                yield Line(number, None if overlong else bytes(kept + part), end)
                kept, overlong = bytearray(), False
            end += len(rest)
            if overlong or len(kept) + len(rest) > max_bytes:
                kept, overlong = bytearray(), True
            else:
                kept += rest
            chunk = await self._read()
        if kept or overlong:
            yield Line(number + 1, None if overlong else bytes(kept), end)

    async def _read_head(self) -> bytes:
        head = b""
        while len(head) < CHUNK_BYTES and foreign_input.needs_more(head):
            chunk = await self._read()
            if not chunk:
                break
            head += chunk
        return head

    async def _read(self) -> bytes:
        if self._unread:
            unread, self._unread = self._unread, b""
            return unread
        return await (self._read_raw() if self._gunzip is None else self._gunzip.read())

    async def _read_raw(self) -> bytes:
        if self._unread_raw:
            unread, self._unread_raw = self._unread_raw, b""
            return unread
        if self._file is None:
            return self._stream.read(CHUNK_BYTES)
        if self._waits:
            return await self._read_when_ready(self._file)
        return os.read(self._file, CHUNK_BYTES)

    async def _read_when_ready(self, file: int) -> bytes:
        # Ctrl-C would not interrupt a blocking read, because the event loop only cancels tasks.
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(file, ready.set)
        except NotImplementedError:  # an event loop of Windows waits for sockets only
            return await _read_in_thread(file)
        except OSError:  # a device that can't be polled, such as /dev/null, is always ready
            self._waits = False
            return os.read(file, CHUNK_BYTES)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(file)
        return os.read(file, CHUNK_BYTES)


async def _read_in_thread(file: int) -> bytes:
    """Read in a thread of its own.

    A cancelled caller leaves the thread in its read, which can't be interrupted. The process ends
    without the thread.
    """
    loop = asyncio.get_running_loop()
    chunk: asyncio.Future[bytes] = loop.create_future()

    def finish(read: bytes | OSError) -> None:
        if chunk.done():  # the caller was cancelled
            return
        if isinstance(read, OSError):
            chunk.set_exception(read)
        else:
            chunk.set_result(read)

    def read() -> None:
        found: bytes | OSError
        try:
            found = os.read(file, CHUNK_BYTES)
        except OSError as error:
            found = error
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(finish, found)

    threading.Thread(target=read, name="sessionsdb-input", daemon=True).start()
    return await chunk


@contextmanager
def open_lines(name: str) -> Iterator[LineSource]:
    """Open the named file, or standard input for ``-``. Raises ``OSError``."""
    if name == "-":
        if sys.stdin is None:
            raise OSError("standard input is closed")
        yield LineSource(sys.stdin.buffer)
        return
    with open(name, "rb", buffering=0) as stream:
        yield LineSource(stream, name)
