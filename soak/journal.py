"""Append-only files of JSON lines: calls, answers, runs of handlers, faults.

A line is one write to the file. So the file of a killed process is complete
up to its last line. ``at`` is the monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".jsonl"


class Journal:
    """The journal of one process, which alone writes it."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}{SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, **entry: Any) -> None:
        line = json.dumps({"at": time.monotonic(), **entry}) + "\n"
        os.write(self._file, line.encode())

    def close(self) -> None:
        os.close(self._file)


def read(folder: Path, names: str = "*") -> Iterator[dict[str, Any]]:
    """The entries of all journals whose names fit the pattern, file by file. An unfinished last
    line is left out."""
    for path in sorted(folder.glob(f"{names}{SUFFIX}")):
        with path.open() as lines:
            for line in lines:
                if line.endswith("}\n"):
                    yield json.loads(line)
