"""The replies that sessions stream while a tool waits for them, for its progress reports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Self

from sessionsdb.errors import SessionsDBError
from sessionsdb.protocols import SessionBroker
from sessionsdb.types import SessionId

MAX_SESSIONS = 10
"""At most so many sessions are followed in one wait."""

SHOWN_CHARACTERS = 200
"""The end of a partial reply is shown up to this length."""


class PartialReplies:
    """Follows sessions, and knows the end of the reply that each of them streams now."""

    def __init__(self, broker: SessionBroker, sessions: Iterable[SessionId]) -> None:
        self._broker = broker
        self._sessions = list(dict.fromkeys(sessions))[:MAX_SESSIONS]
        self._ends: dict[SessionId, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow(one)) for one in self._sessions]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def text(self) -> str:
        """Return one line with the end of each partial reply, empty without one."""
        shown = (f"; {id}: …{' '.join(end.split())}" for id, end in self._ends.items() if end)
        return "".join(shown)

    async def _follow(self, id: SessionId) -> None:
        try:
            async with aclosing(self._broker.follow(id)) as events:
                async for event in events:
                    if event.type == "delta":
                        end = self._ends.get(id, "") + event.text
                        self._ends[id] = end[-SHOWN_CHARACTERS:]
                    elif event.type in ("reset", "turn", "idle", "deleted"):
                        self._ends.pop(id, None)
        except SessionsDBError:
            pass  # the wait itself reports the error
