"""Turns that stand still, and pieces that they have streamed."""

from __future__ import annotations

import asyncio
from typing import Any

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from tests.support.waiting import until


class Hanging:
    """A handler whose turns hang until they are cancelled, or until ``release`` is called."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.stopped: list[tuple[str, str | None]] = []
        """Of each cancelled turn its session, and ``stopped_by`` as the handler sees it."""
        self._go_on = asyncio.Event()

    async def __call__(self, turn: Turn) -> str:
        self.turns.append(turn)
        try:
            await self._go_on.wait()
        except asyncio.CancelledError:
            self.stopped.append((turn.session.id, turn.stopped_by))
            raise
        return f"answer to {turn.text}"

    def release(self) -> None:
        """Let all turns end, those that begin later too."""
        self._go_on.set()

    async def begun(self, count: int = 1) -> Turn:
        """Return the last turn when this many have begun."""
        await until(lambda: len(self.turns) >= count)
        return self.turns[-1]


async def stream(database: Database, id: str, *texts: str) -> None:
    """Store these pieces for the running turn of a session, as a handler that streams does."""
    [(epoch,)] = await database.query(f"SELECT epoch FROM mailboxes WHERE session_id = '{id}'")
    start = 0
    for number, text in enumerate(texts):
        await database.query(
            "INSERT INTO pieces (namespace, session_id, epoch, generation, number, start, text,"
            f" written_at) VALUES ('default', '{id}', {epoch}, 0, {number}, {start}, '{text}',"
            " '2024-01-01 00:00:00.000000')"
        )
        start += len(text)


async def transcript(db: SessionsDB, id: str) -> list[tuple[str, str, bool]]:
    """Return the role, the text and the mark ``interrupted`` of each message."""
    return [(one.role, one.content, one.interrupted) for one in await db.broker.history(id)]


async def inbox_counts(database: Database, id: str) -> Any:
    """Return ``pending``, ``taken`` and whether nothing holds the mailbox."""
    return await database.query(
        "SELECT pending, taken, owner IS NULL AND wake_at IS NULL AND ready_at IS NULL"
        f" FROM mailboxes WHERE session_id = '{id}'"
    )
