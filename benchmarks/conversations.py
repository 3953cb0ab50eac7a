"""The conversations group: entries, pop, edit with state and fork, against the same SQL by hand.

Each caller has a session of its own with 400 messages. A fork copies a session of 10,000.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

from benchmarks.bench import Bench, calls
from benchmarks.cases import PAGE
from benchmarks.filling import CHAT_MESSAGES
from benchmarks.floor import conversations as by_hand
from benchmarks.messages import text, transcript
from benchmarks.results import FLOOR, OURS
from devtools.databases import Database
from sessionsdb import Edit, SessionsDB

ENTRIES, POP = "entries, a page of 50", "append one and pop it"
EDIT, FORK = "edit with state", "fork 10,000 messages"

CALLERS = (1, 64)
FORKED = 10_000


class Conversations(Protocol):
    """A side. A session is identified by its number."""

    async def entries(self, session: int) -> object: ...
    async def pop(self, session: int) -> object: ...
    async def edit(self, session: int) -> object: ...
    async def fork(self, session: int) -> object: ...


WORK: dict[str, Callable[[Conversations, int], object]] = {
    ENTRIES: lambda side, session: side.entries(session),
    POP: lambda side, session: side.pop(session),
    EDIT: lambda side, session: side.edit(session),
    FORK: lambda side, _: side.fork(LONG),
}

LONG = max(CALLERS)
"""The number of the session that is forked."""


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure(bench, database))


async def _measure(bench: Bench, database: str) -> None:
    async with AsyncExitStack() as stack:
        sides: dict[str, Conversations] = {}
        databases = []
        for side, opened in SIDES.items():
            if not bench.wants(side):
                continue
            made = stack.enter_context(bench.new_database(database))
            await _fill(made, 10 if bench.tiny else CHAT_MESSAGES, 50 if bench.tiny else FORKED)
            databases.append(made)
            sides[side] = await stack.enter_async_context(opened(made))
        for what in WORK:
            for callers in CALLERS[:1] if what == FORK else CALLERS:
                await bench.settle(databases)
                await bench.compare(
                    what,
                    database=database,
                    at={"callers": callers},
                    samplers={
                        side: calls(callers, _repeated(what, conversations), bench.seconds)
                        for side, conversations in sides.items()
                    },
                )


def _repeated(what: str, side: Conversations) -> Callable[[int], object]:
    return lambda caller: WORK[what](side, caller)


async def _fill(database: Database, messages: int, forked: int) -> None:
    async with SessionsDB(database.url) as db:
        saves = (db.store.save(_id(session), transcript(messages)) for session in range(LONG))
        await asyncio.gather(*saves)
        await db.store.save(_id(LONG), transcript(forked))


def _id(session: int) -> str:
    return f"session-{session}"


class _Ours:
    def __init__(self, db: SessionsDB) -> None:
        self._db = db
        self._two = transcript(2)
        self._numbers = itertools.count()

    async def entries(self, session: int) -> object:
        return await self._db.store.entries(_id(session), PAGE)

    async def pop(self, session: int) -> object:
        await self._db.store.append(_id(session), self._two[:1])
        return await self._db.store.pop(_id(session))

    async def edit(self, session: int) -> object:
        state = {"step": next(self._numbers)}
        return await self._db.store.edit(
            _id(session), Edit(append=self._two, state={"session": state})
        )

    async def fork(self, session: int) -> object:
        return await self._db.broker.fork(_id(session))


class _ByHand:
    def __init__(self, conversations: by_hand.ConversationsByHand) -> None:
        self._conversations = conversations
        self._two = [("user", text(0)), ("assistant", text(1))]
        self._numbers = itertools.count()

    async def entries(self, session: int) -> object:
        return await self._conversations.entries(_id(session))

    async def pop(self, session: int) -> object:
        return await self._conversations.append_and_pop(_id(session), self._two[0])

    async def edit(self, session: int) -> object:
        return await self._conversations.edit(_id(session), self._two, str(next(self._numbers)))

    async def fork(self, session: int) -> object:
        return await self._conversations.fork(_id(session), f"fork-{next(self._numbers)}")


@asynccontextmanager
async def _ours(database: Database) -> AsyncIterator[Conversations]:
    async with SessionsDB(database.url) as db:
        yield _Ours(db)


@asynccontextmanager
async def _floor(database: Database) -> AsyncIterator[Conversations]:
    async with by_hand.opened(database) as conversations:
        yield _ByHand(conversations)


SIDES: dict[str, Callable[[Database], AbstractAsyncContextManager[Conversations]]] = {
    OURS: _ours,
    FLOOR: _floor,
}
