"""A database under test, and the faults that the nemesis can inject into it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from soak.plan import Plan

Act = Callable[[random.Random], Awaitable[dict[str, Any]]]
"""Injects one fault, undoes it and returns its fields. An empty dict: there was no victim."""

BALLAST_BYTES = 4_000_000
BALLAST_ROWS = 8


def held(chance: random.Random, plan: Plan) -> float:
    """The seconds for which a transaction is held open."""
    if chance.random() < plan.long_odds:
        return plan.long
    return chance.uniform(0.25, 1.0) * plan.hold


class Storage(Protocol):
    """One database of a soak, on a file or a server of its own."""

    kind: str
    """``sqlite`` or ``postgresql``."""
    url: str
    """The URL for the processes."""
    direct_url: str
    """The URL for the checker, past the proxy."""

    def faults(self, plan: Plan) -> Mapping[str, Act]:
        """The faults of this database, by name."""

    async def prepare(self) -> None:
        """Migrate the schema, and create the tables that the faults need."""

    def served(self) -> AbstractAsyncContextManager[None]:
        """Entered while the processes run."""

    async def integrity(self) -> list[str]:
        """The errors that the database finds in its own files."""
