"""A database under test, and what the nemesis can do to it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from soak.plan import Plan

Act = Callable[[random.Random], Awaitable[dict[str, Any]]]
"""Does one fault and undoes it; what is told of it. An empty dict: it found nobody to do it to."""

BALLAST_BYTES = 4_000_000
BALLAST_ROWS = 8


def held(chance: random.Random, plan: Plan) -> float:
    """For how many seconds a transaction is held open."""
    if chance.random() < plan.long_odds:
        return plan.long
    return chance.uniform(0.25, 1.0) * plan.hold


class Storage(Protocol):
    """One database of a soak, on a file or a server of its own."""

    kind: str
    """``sqlite`` or ``postgresql``."""
    url: str
    """Where the processes find it."""
    direct_url: str
    """Where the checker finds it, past whatever stands before it."""

    def faults(self, plan: Plan) -> Mapping[str, Act]:
        """What can be done to it, by name."""

    async def prepare(self) -> None:
        """Bring the schema up, and make what the faults need."""

    def served(self) -> AbstractAsyncContextManager[None]:
        """While the processes are at work."""

    async def integrity(self) -> list[str]:
        """What the database itself finds wrong with its files."""
