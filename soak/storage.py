"""A database under test, and what the nemesis can do to it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

Act = Callable[[random.Random], Awaitable[dict[str, Any]]]
"""Does one fault and undoes it; what is told of it. An empty dict: it found nobody to do it to."""

BALLAST_BYTES = 4_000_000
BALLAST_ROWS = 8


class Storage(Protocol):
    """One database of a soak, on a file or a server of its own."""

    kind: str
    """``sqlite`` or ``postgresql``."""
    url: str

    def faults(self, hold: float) -> Mapping[str, Act]:
        """What can be done to it, by name; ``hold``: the longest transaction, in seconds."""

    async def prepare(self) -> None:
        """Bring the schema up, and make what the faults need."""

    async def integrity(self) -> list[str]:
        """What the database itself finds wrong with its files."""
