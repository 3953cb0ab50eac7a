"""The turns group: an agent reads its transcript and adds two messages, against other stores.

Each caller has a session of its own. The transcript begins with 20 or 400 messages. After
``MAX_TURNS`` turns it is made anew: otherwise a faster side would read longer transcripts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from benchmarks.bench import Bench, Sample, Sampler, calls
from benchmarks.filling import Size, fill
from benchmarks.floor import opened_floor
from benchmarks.messages import transcript
from benchmarks.results import FLOOR, OURS
from devtools.databases import Database
from sessionsdb import SessionsDB

TURN = "turn of two messages"

CALLERS = (1, 64)
LENGTHS = (20, 400)
"""The messages of a transcript before its first turn."""

MAX_TURNS = 20


class Turns(Protocol):
    """A side. A session is identified by its number."""

    async def fill(self, session: int, messages: int) -> object:
        """Make the transcript of a session anew, with this many messages."""

    async def turn(self, session: int) -> object:
        """Read the whole transcript, and add two messages to it."""


Opened = Callable[[Database], AbstractAsyncContextManager[Turns]]


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(_measure(bench, database))


async def _measure(bench: Bench, database: str) -> None:
    lengths = (4,) if bench.tiny else LENGTHS[:1] if bench.quick else LENGTHS
    async with AsyncExitStack() as stack:
        sides: dict[str, Turns] = {}
        databases = []
        for side, opened in _sides(bench, database).items():
            made = stack.enter_context(bench.new_database(database, migrated=side in (OURS, FLOOR)))
            databases.append(made)
            sides[side] = await stack.enter_async_context(opened(made))
        for messages in lengths:
            for callers in CALLERS:
                # With statistics of one session PostgreSQL would take each of 64 for a whole table.
                for turns in sides.values():
                    for caller in range(callers):
                        await turns.fill(caller, messages)
                await bench.settle(databases)
                await bench.compare(
                    TURN,
                    database=database,
                    at={"messages": messages, "callers": callers},
                    samplers={
                        side: _taking_turns(turns, messages, callers, bench.seconds)
                        for side, turns in sides.items()
                    },
                )


def _taking_turns(turns: Turns, messages: int, callers: int, seconds: float) -> Sampler:
    """Take turns for this long. The time in which transcripts are made anew is left out."""

    async def sample() -> Sample:
        times: list[float] = []
        spent = 0.0
        while spent < seconds:
            for caller in range(callers):
                await turns.fill(caller, messages)
            began = time.perf_counter()
            stretch = await calls(callers, turns.turn, seconds - spent, max_calls=MAX_TURNS)()
            spent += time.perf_counter() - began
            times += stretch.times
        return Sample(len(times) / spent, times)

    return sample


def _sides(bench: Bench, database: str) -> dict[str, Opened]:
    """The sides that are wanted. The package of a peer is imported only if it is measured."""
    from benchmarks.peers import redis_server

    sides: dict[str, Opened] = {OURS: _ours, FLOOR: _floor}
    if bench.wants("langgraph"):
        from benchmarks.peers import langgraph_checkpoints

        sides["langgraph"] = langgraph_checkpoints.opened
    if bench.wants("openai-agents"):
        from benchmarks.peers import openai_sessions

        sides["openai-agents"] = openai_sessions.opened_turns
    if redis_server.is_installed():
        for side in redis_server.SIDES:
            if bench.wants(side):
                from benchmarks.peers import openai_sessions

                sides[side] = openai_sessions.redis_turns(side)
    elif any(bench.wants(side) for side in redis_server.SIDES):
        bench.note(redis_server.MISSING)
    return {side: opened for side, opened in sides.items() if bench.wants(side)}


class _OurTurns:
    def __init__(self, db: SessionsDB) -> None:
        self._store = db.store
        self._two = transcript(2)

    async def fill(self, session: int, messages: int) -> object:
        return await self._store.save(_id(session), transcript(messages))

    async def turn(self, session: int) -> object:
        await self._store.load(_id(session))
        return await self._store.append(_id(session), self._two)


class _FloorTurns:
    """The bare driver. Messages are rows, and reads return rows."""

    def __init__(self, floor: Any) -> None:
        self._floor = floor
        self._two = _rows(2)

    async def fill(self, session: int, messages: int) -> object:
        return await self._floor.save(_id(session), _rows(messages))

    async def turn(self, session: int) -> object:
        await self._floor.load(_id(session))
        return await self._floor.append(_id(session), self._two)


def _rows(count: int) -> list[Any]:
    return [(message["role"], message["content"], None) for message in transcript(count)]


def _id(session: int) -> str:
    return f"session-{session:06}"


@asynccontextmanager
async def _ours(database: Database) -> AsyncIterator[Turns]:
    async with SessionsDB(database.url) as db:
        yield _OurTurns(db)


@asynccontextmanager
async def _floor(database: Database) -> AsyncIterator[Turns]:
    await fill(database, Size(max(CALLERS), 0, 0))
    async with opened_floor(database) as floor:
        yield _FloorTurns(floor)
