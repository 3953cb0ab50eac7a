"""A number that one process sets and another process reads at any moment."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path


class SharedValue:
    """Eight bytes in a file that both processes have mapped. A read costs no system call."""

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


def clock_shift(folder: Path, process: str) -> SharedValue:
    """The seconds by which the wall clock of a process is wrong."""
    return SharedValue(folder / f"{process}.shift")


def stop_at_commit(folder: Path, process: str) -> SharedValue:
    """1 asks a worker to stop itself before its next commit. The worker sets 0 when it stops."""
    return SharedValue(folder / f"{process}.stall")
