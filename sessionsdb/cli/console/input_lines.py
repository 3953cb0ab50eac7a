"""The lines of a file or a pipe, in constant memory whatever they hold."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

CHUNK_BYTES = 256 * 1024


class Line(NamedTuple):
    """One line; ``text`` is ``None`` if it was longer than the limit, and then not kept."""

    number: int
    text: bytes | None
    end: int
    """How many bytes of the source it and all before it take."""


class LineSource:
    """Where lines come from."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._file: int | None
        try:
            self._file = stream.fileno()
        except (OSError, ValueError):  # not a file of the system's
            self._file = None
        mode = None if self._file is None else os.fstat(self._file).st_mode
        # Only what can keep us waiting is waited for: a regular file is always ready.
        self._waits = mode is not None and not stat.S_ISREG(mode) and os.name == "posix"
        self.size: int | None = None
        """Bytes, if it is known how many will come."""
        if self._file is not None and mode is not None and stat.S_ISREG(mode):
            self.size = os.fstat(self._file).st_size

    async def lines(self, most: int) -> AsyncIterator[Line]:
        """Every line without its end; of one over ``most`` bytes only the number."""
        kept, overlong, number, end = bytearray(), False, 0, 0
        while chunk := await self._read():
            *finished, rest = chunk.split(b"\n")
            for part in finished:
                number, end = number + 1, end + len(part) + 1
                overlong = overlong or len(kept) + len(part) > most
                yield Line(number, None if overlong else bytes(kept + part), end)
                kept, overlong = bytearray(), False
            end += len(rest)
            if overlong or len(kept) + len(rest) > most:
                kept, overlong = bytearray(), True
            else:
                kept += rest
        if kept or overlong:
            yield Line(number + 1, None if overlong else bytes(kept), end)

    async def _read(self) -> bytes:
        if self._file is None:
            return self._stream.read(CHUNK_BYTES)
        if self._waits:
            await self._readable(self._file)
        return os.read(self._file, CHUNK_BYTES)

    async def _readable(self, file: int) -> None:
        # A blocking read here would not be ended by Ctrl-C: the loop only cancels tasks.
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(file, ready.set)
        except OSError:  # a device that can't be waited for, and never has to be
            self._waits = False
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(file)


@contextmanager
def opened(name: str) -> Iterator[LineSource]:
    """The file of that name, or standard input for ``-``. Raises ``OSError``."""
    if name == "-":
        if sys.stdin is None:
            raise OSError("standard input is closed")
        yield LineSource(sys.stdin.buffer)
        return
    with open(name, "rb", buffering=0) as stream:
        yield LineSource(stream)
