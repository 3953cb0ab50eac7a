"""The store group: transcripts written and read, against peers and against the bare driver.

Each side has a database of its own with the same content: 10,000 sessions, of which some have a
transcript of 400 messages to append to and to read from, and some one of 1,000 to load and to save.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from benchmarks.bench import Bench, Sample, Sampler, calls
from benchmarks.cases import APPEND, HISTORY, LIST, LOAD, PAGE, SAVE
from benchmarks.filling import BOOK_MESSAGES, Size, fill
from benchmarks.floor import opened_floor
from benchmarks.messages import transcript
from benchmarks.results import FLOOR, OURS
from devtools.databases import Database
from sessionsdb import SessionsDB

REWRITE = "bare driver, rewriting"
"""The bare driver that deletes the transcript and writes all of it again."""

MAX_SAVES = 50
"""The saves of each caller before it begins again with 1,000 messages."""

Message = dict[str, Any]


class Store(Protocol):
    """A side. A session is identified by its number. The first ``Size.chats`` have 400 messages,
    the next ``Size.books`` 1,000. ``offers`` has the cases that a side can do."""

    offers: frozenset[str]

    def form(self, message: Message) -> Any:
        """Convert a message to the form of this side, before the clock runs."""

    async def append(self, session: int, messages: Sequence[Any]) -> object: ...
    async def history(self, session: int) -> object: ...
    async def load(self, session: int) -> Sequence[object]: ...
    async def save(self, session: int, messages: Sequence[Any]) -> object: ...
    async def list(self) -> Sequence[object]: ...


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure(bench, database))


async def _measure(bench: Bench, database: str) -> None:
    # A quick run loads and saves by one caller only.
    size = Size(100, 4, 2) if bench.tiny else Size(books=4) if bench.quick else Size()
    stores: dict[str, Store] = {}
    databases = []
    async with AsyncExitStack() as stack:
        for side, opened in _sides(bench).items():
            made = stack.enter_context(
                bench.new_database(database, migrated=side in (OURS, FLOOR, REWRITE))
            )
            databases.append(made)
            stores[side] = await stack.enter_async_context(opened(made, size))
        for callers in (1, 64) if bench.quick else (1, 16, 64):
            for what, sampler in _samplers(size, callers, bench.seconds).items():
                if bench.quick and callers > 1 and what not in (APPEND, HISTORY):
                    continue
                await bench.settle(databases)
                await bench.compare(
                    what,
                    database=database,
                    at={"callers": callers},
                    samplers={
                        side: sampler(store)
                        for side, store in stores.items()
                        if what in store.offers and not (bench.quick and _is_spared(side, what))
                    },
                )


def _is_spared(side: str, what: str) -> bool:
    """Whether a quick run skips the case: it has no bar, and takes a quarter of the time."""
    return side == "google-adk" and what != LIST


def _samplers(size: Size, callers: int, seconds: float) -> dict[str, Callable[[Store], Sampler]]:
    """The operation that each caller repeats. Callers do not share sessions."""

    def append(store: Store) -> Sampler:
        two = [store.form(message) for message in transcript(2)]
        return calls(callers, lambda caller: store.append(caller % size.chats, two), seconds)

    def history(store: Store) -> Sampler:
        return calls(callers, lambda caller: store.history(caller % size.chats), seconds)

    def load(store: Store) -> Sampler:
        return calls(callers, lambda caller: store.load(size.chats + caller % size.books), seconds)

    def save(store: Store) -> Sampler:
        return _saving(store, size, callers, seconds)

    def list_page(store: Store) -> Sampler:
        return calls(callers, lambda _: store.list(), seconds)

    return {APPEND: append, HISTORY: history, LOAD: load, SAVE: save, LIST: list_page}


def _saving(store: Store, size: Size, callers: int, seconds: float) -> Sampler:
    """Each caller saves a transcript of 1,000 messages repeatedly, each time with two more. After
    ``MAX_SAVES`` it begins again with 1,000: otherwise a faster side would save longer ones."""
    two = [store.form(message) for message in transcript(2)]
    kept: dict[int, list[Any]] = {}

    def book(caller: int) -> int:
        return size.chats + caller % size.books

    async def longer_by_two(caller: int) -> object:
        kept[caller] += two
        return await store.save(book(caller), kept[caller])

    async def sample() -> Sample:
        times: list[float] = []
        spent = 0.0
        while spent < seconds:
            for caller in range(callers):
                kept[caller] = [store.form(message) for message in transcript(BOOK_MESSAGES)]
                await store.save(book(caller), [])
                await store.save(book(caller), kept[caller])
            began = time.perf_counter()
            stretch = await calls(callers, longer_by_two, seconds - spent, max_calls=MAX_SAVES)()
            spent += time.perf_counter() - began
            times += stretch.times
        return Sample(len(times) / spent, times)

    return sample


def _sides(bench: Bench) -> Mapping[str, Any]:
    sides: dict[str, Any] = {OURS: _ours, FLOOR: _floor, REWRITE: _rewriting}
    if bench.wants("openai-agents"):
        from benchmarks.peers import openai_agents

        sides["openai-agents"] = openai_agents.opened
    if bench.wants("google-adk"):
        from benchmarks.peers import google_adk

        sides["google-adk"] = google_adk.opened
    return {side: opened for side, opened in sides.items() if bench.wants(side)}


# ---- ours ------------------------------------------------------------------------------------


class OurStore:
    offers = frozenset((APPEND, HISTORY, LOAD, SAVE, LIST))

    def __init__(self, db: SessionsDB, size: Size) -> None:
        self._db = db
        self._ids = size.ids()

    def form(self, message: Message) -> Any:
        return message

    async def append(self, session: int, messages: Sequence[Any]) -> object:
        return await self._db.store.append(self._ids[session], messages)

    async def history(self, session: int) -> object:
        return await self._db.broker.history(self._ids[session], PAGE)

    async def load(self, session: int) -> Sequence[object]:
        return await self._db.store.load(self._ids[session]) or ()

    async def save(self, session: int, messages: Sequence[Any]) -> object:
        return await self._db.store.save(self._ids[session], messages)

    async def list(self) -> Sequence[object]:
        return await self._db.broker.list(limit=PAGE)


@asynccontextmanager
async def _ours(database: Database, size: Size) -> Any:
    await fill(database, size)
    async with SessionsDB(database.url) as db:
        yield OurStore(db, size)


# ---- the floor -------------------------------------------------------------------------------


class FloorStore:
    """The bare driver. Messages are rows, and reads return rows."""

    offers = frozenset((APPEND, HISTORY, LOAD, SAVE, LIST))

    def __init__(self, floor: Any, size: Size) -> None:
        self._floor = floor
        self._ids = size.ids()

    def form(self, message: Message) -> Any:
        return (message["role"], message["content"], None)

    async def append(self, session: int, messages: Sequence[Any]) -> object:
        return await self._floor.append(self._ids[session], messages)

    async def history(self, session: int) -> object:
        return await self._floor.history(self._ids[session], PAGE)

    async def load(self, session: int) -> Sequence[object]:
        rows: Sequence[object] = await self._floor.load(self._ids[session])
        return rows

    async def save(self, session: int, messages: Sequence[Any]) -> object:
        return await self._floor.save(self._ids[session], messages)

    async def list(self) -> Sequence[object]:
        rows: Sequence[object] = await self._floor.list(PAGE)
        return rows


class RewritingStore(FloorStore):
    offers = frozenset((SAVE,))

    async def save(self, session: int, messages: Sequence[Any]) -> object:
        return await self._floor.rewrite(self._ids[session], messages)


@asynccontextmanager
async def _floor(database: Database, size: Size) -> Any:
    await fill(database, size)
    async with opened_floor(database) as floor:
        yield FloorStore(floor, size)


@asynccontextmanager
async def _rewriting(database: Database, size: Size) -> Any:
    await fill(database, size)
    async with opened_floor(database) as floor:
        yield RewritingStore(floor, size)
