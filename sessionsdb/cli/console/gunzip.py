"""Decompress gzip piece by piece, in constant memory, also if the input is hostile."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable

from sessionsdb import InvalidArgument

MAX_RATIO = 100
"""Input that becomes larger than this many times its size is refused, beyond ``FREE_BYTES``. JSON
becomes 5 to 30 times as large. gzip itself allows 1,032."""
FREE_BYTES = 2**30

_GZIP = 16 + zlib.MAX_WBITS


class Gunzip:
    """The decompressed bytes of an input."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], name: str, most: int) -> None:
        self._read_compressed = read
        self._name = name
        self._most = most
        self._waiting = b""
        self._member = zlib.decompressobj(_GZIP)
        self._read_bytes = self._made_bytes = 0

    async def read(self) -> bytes:
        """Return the next bytes, at most ``most``, and none at the end.

        Raises ``InvalidArgument`` if the input is damaged, ends early, or becomes too large.
        """
        while True:
            if not self._waiting:
                self._waiting = await self._read_compressed()
                self._read_bytes += len(self._waiting)
                if not self._waiting:
                    return self._end()
            made = self._decompress()
            if made:
                return made

    def _end(self) -> bytes:
        if not self._member.eof:
            raise InvalidArgument(f"{self._name} ends early: the end of its gzip data is missing")
        return b""

    def _decompress(self) -> bytes:
        if self._member.eof:  # files of gzip that were joined
            self._member = zlib.decompressobj(_GZIP)
        try:
            made = self._member.decompress(self._waiting, self._most)
        except zlib.error as error:
            raise InvalidArgument(f"{self._name} is damaged gzip: {error}") from error
        self._waiting = self._member.unconsumed_tail or self._member.unused_data
        self._made_bytes += len(made)
        if self._made_bytes > max(FREE_BYTES, MAX_RATIO * self._read_bytes):
            raise InvalidArgument(
                f"{self._name} becomes more than {MAX_RATIO} times as large when it is decompressed"
            )
        return made
