"""A consumer of ``follow`` that disconnects at random points and checks what it is told."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

from sessionsdb import Event, SessionMessage, SessionsDB, StorageError


class Watcher:
    """Follows one session to a number of replies, and checks each event against those before it."""

    def __init__(self, db: SessionsDB, id: str, *, replies: int, seed: int) -> None:
        self._db = db
        self._id = id
        self._replies = replies
        self._random = random.Random(seed)
        self.cursor: str = "start"
        self.messages: list[SessionMessage] = []
        self.pieces: dict[int, str] = {}
        """The text of the runs whose end was not told."""
        self.streamed = 0
        """How many runs were told in part before their commit."""
        self.resets = 0
        self.connections = 0

    async def watch(self) -> None:
        while self._answered() < self._replies or self.pieces:
            self.connections += 1
            try:
                await self._connect()
            except StorageError:
                await asyncio.sleep(0.05)  # the server is away: a client connects again

    def _answered(self) -> int:
        return sum(message.role == "assistant" for message in self.messages)

    async def _connect(self) -> None:
        left = self._random.randint(1, 30)
        async with aclosing(self._db.broker.follow(self._id, after=self.cursor)) as events:
            async for event in events:
                self.check(event)
                self.cursor = event.cursor
                left -= 1
                if not left or (self._answered() >= self._replies and not self.pieces):
                    return

    def check(self, event: Event) -> None:
        assert event.session_id == self._id
        if event.type == "message":
            last = self.messages[-1].seq if self.messages else 0
            assert (event.message.seq or 0) > (last or 0), "a message came twice, or out of order"
            self.messages.append(event.message)
        elif event.type in ("delta", "data"):
            assert set(self.pieces) <= {event.run}, "pieces of another run were not void"
            text = self.pieces.setdefault(event.run, "")
            if event.type == "delta":
                assert event.offset == len(text), "a gap in the pieces, or a piece twice"
                self.pieces[event.run] = text + event.text
        elif event.type == "reset":
            self.pieces.pop(event.run, None)
            self.resets += 1
        elif event.type == "turn" and event.status == "done" and event.run in self.pieces:
            streamed = self.pieces.pop(event.run)
            assert self.messages[-1].content.startswith(streamed)
            self.streamed += bool(streamed)
