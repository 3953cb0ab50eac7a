"""Follow sessions in tests, and write the pieces of a turn that streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from sqlalchemy import Connection, insert

from sessionsdb import Event, SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.engine import clock
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.runtime.database_access import PIECES, hint_about
from sessionsdb.schema import pieces


class Follow:
    """The events of a follower, read one by one."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self.seen: list[Event] = []

    @property
    def cursor(self) -> str:
        return self.seen[-1].cursor

    async def next(self, *, within: float = 20.0) -> Event:
        async with asyncio.timeout(within):
            event = await anext(self._events)
        self.seen.append(event)
        return event

    async def take(self, count: int) -> list[str]:
        """Return the next events in short."""
        return [short(await self.next()) for _ in range(count)]

    async def until(self, wanted: str) -> list[str]:
        """Return the events up to the first that is ``wanted`` in short."""
        found: list[str] = []
        while not found or found[-1] != wanted:
            found.append(short(await self.next()))
        return found

    async def stays_silent(self, seconds: float = 0.3) -> None:
        """Fail if an event comes within a time."""
        waiting = asyncio.ensure_future(anext(self._events))
        done, _ = await asyncio.wait((waiting,), timeout=seconds)
        assert not done, waiting.result()
        waiting.cancel()
        await asyncio.wait((waiting,))


@asynccontextmanager
async def following(db: SessionsDB, id: str, **options: Any) -> AsyncIterator[Follow]:
    async with aclosing(db.broker.follow(id, **options)) as events:
        yield Follow(events)


def short(event: Event) -> str:
    """Return an event as a few words."""
    if event.type in ("message", "queued"):
        return f"{event.type} {event.message.content}"
    if event.type == "turn":
        return f"turn {event.status}"
    if event.type == "delta":
        return f"delta {event.offset} {event.text}"
    if event.type == "data":
        return f"data {event.kind} {event.data}"
    return event.type


async def stream(
    db: SessionsDB, lease: Lease, *texts: Any, first: int = 0, start: int = 0, generation: int = 0
) -> int:
    """Write pieces of a running turn, and return the number of characters. A dict is data."""
    rows = []
    for number, text in enumerate(texts, first):
        row: dict[str, Any] = {"text": None, "kind": None, "data": None}
        if isinstance(text, str):
            row["text"] = text
        else:
            row |= {"kind": "tool", "data": json.dumps(text)}
        rows.append(
            {
                "namespace": lease.namespace,
                "session_id": lease.session.id,
                "epoch": lease.epoch,
                "generation": generation,
                "number": number,
                "start": start,
                **row,
            }
        )
        start += len(text) if isinstance(text, str) else 0

    def write(connection: Connection) -> None:
        present = clock.read_now(connection)
        connection.execute(insert(pieces), [row | {"written_at": present} for row in rows])

    await open_database_of(db).write(write, wakes=(hint_about(PIECES, [lease.key]),))
    return start
