"""A number that one process sets and another reads at any moment."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path


class Dial:
    """Eight bytes in a file that both have mapped: to read it costs no call to anybody."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(struct.pack("d", 0.0))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 8)

    @property
    def value(self) -> float:
        return float(struct.unpack("d", self._bytes[:8])[0])

    @value.setter
    def value(self, value: float) -> None:
        self._bytes[:8] = struct.pack("d", value)


def shift(folder: Path, process: str) -> Dial:
    """By how many seconds the wall clock of a process is wrong."""
    return Dial(folder / f"{process}.shift")


def stall(folder: Path, process: str) -> Dial:
    """Whether a worker is to stop itself when the next turn is about to commit: 1, and 0 again
    when it has."""
    return Dial(folder / f"{process}.stall")
