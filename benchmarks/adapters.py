"""The adapters group: our adapters beside the stores that the frameworks bring along.

Each side does the same work by the interface of its framework. A reader reads sessions of 2,000
messages. A writer writes to sessions of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol

from benchmarks.bench import Bench, calls
from benchmarks.results import OURS
from devtools.databases import Database

LENGTH = 2_000
"""The messages of a session that is read from."""

LAST = 20

CALLERS = (1, 64)

READ = f"read the last {LAST} of {LENGTH:,}"


class Store(Protocol):
    """A side. A session is identified by its number."""

    offers: frozenset[str]

    async def fill(self, sessions: Sequence[int], messages: int) -> None:
        """Make sessions with this many messages."""

    async def add(self, session: int) -> object: ...
    async def read(self, session: int) -> Sequence[object]: ...
    async def pop(self, session: int) -> object: ...
    async def list(self) -> Sequence[object]: ...


Opened = Callable[[Database], AbstractAsyncContextManager[Store]]

WORK: Mapping[str, Callable[[Store, int], Any]] = {
    "add": lambda store, session: store.add(session),
    READ: lambda store, session: store.read(session),
    "pop": lambda store, session: store.pop(session),
    "list": lambda store, _: store.list(),
}
"""What each caller repeats, by the name of the case."""


def measure(bench: Bench) -> None:
    for database in bench.databases:
        for framework, sides in _frameworks(bench).items():
            asyncio.run(_measure(bench, database, framework, sides))


def _frameworks(bench: Bench) -> dict[str, dict[str, Opened]]:
    """The sides of each framework. Its package is imported only if it is measured."""
    frameworks: dict[str, dict[str, Opened]] = {}
    if bench.wants("openai-agents"):
        from benchmarks.peers import openai_sessions

        frameworks["OpenAI Agents"] = openai_sessions.sides(bench)
    if bench.wants("google-adk"):
        from benchmarks.peers import adk_sessions

        frameworks["Google ADK"] = adk_sessions.SIDES
    if bench.wants("agent-framework"):
        from benchmarks.peers import maf_history

        frameworks["Agent Framework"] = maf_history.SIDES
    return frameworks


async def _measure(bench: Bench, database: str, framework: str, sides: dict[str, Opened]) -> None:
    length = 50 if bench.tiny else LENGTH
    read, written = _sessions(bench)
    stores: dict[str, Store] = {}
    databases = []
    async with AsyncExitStack() as stack:
        for side, opened in sides.items():
            if not bench.wants(side):
                continue
            made = stack.enter_context(bench.new_database(database, migrated=side == OURS))
            databases.append(made)
            stores[side] = await stack.enter_async_context(opened(made))
            await stores[side].fill(read, length)
            await stores[side].fill(written, 2)
        for callers in CALLERS:
            for what in WORK:
                await bench.settle(databases)
                chosen = read if what == READ else written
                await bench.compare(
                    f"{framework}: {what}",
                    database=database,
                    at={"callers": callers},
                    samplers={
                        side: _sampler(store, what, chosen, callers, bench.seconds)
                        for side, store in stores.items()
                        if what in store.offers
                    },
                )


def _sessions(bench: Bench) -> tuple[range, range]:
    """The numbers of the long sessions, which are read, and of those that are written to."""
    long = 1 if bench.tiny else 2 if bench.quick else 8
    return range(long), range(long, long + max(CALLERS))


def _sampler(
    store: Store, what: str, sessions: Sequence[int], callers: int, seconds: float
) -> Callable[[], Any]:
    work = WORK[what]
    return calls(callers, lambda caller: work(store, sessions[caller % len(sessions)]), seconds)
