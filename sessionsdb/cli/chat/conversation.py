"""A session that a person talks to."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import uuid4

from sessionsdb import (
    Event,
    Handler,
    InvalidArgument,
    OpenQuestion,
    QuestionAnswered,
    QuestionClosed,
    Receipt,
    SessionEnded,
    SessionId,
    SessionMessage,
    SessionsDB,
    UnknownSession,
)
from sessionsdb.cli.session_prefix import whole_id

CHANNEL = "cli"

SECONDS_TO_A_WORKER = 10.0
"""After so many seconds without a turn the user is told that no worker has taken the message."""

PAGE_BYTES = 1_048_576
"""The texts of messages that are read at once."""

NO_WORKER = (
    "no worker has taken the message yet; start one for this database with: sessionsdb worker "
    "MODULE:HANDLER, or begin the chat with --agent MODULE:HANDLER"
)


class Conversation:
    """One session: its messages, its events, and the way to stop its turns.

    A new session is made at the first message, so that a chat without a message leaves none.
    """

    def __init__(self, db: SessionsDB, id: str, *, is_new: bool, last_seq: int = 0) -> None:
        self._db = db
        self._last_seq = last_seq
        self._exists = asyncio.Event()
        self._is_followed = False
        self._has_begun = asyncio.Event()
        """Whether the follower knows where its events begin."""
        self.id = id
        if not is_new:
            self._exists.set()

    @classmethod
    async def open(cls, db: SessionsDB, id: str | None) -> Conversation:
        """Go on with a session, or begin a new one.

        Raises ``SessionEnded``, and ``InvalidArgument`` if there is no such session.
        """
        if id is None:
            return cls(db, f"chat-{uuid4()}", is_new=True)
        id = await whole_id(db, id, writes=True)
        try:
            session = await db.broker.get(id)
        except UnknownSession as error:
            raise InvalidArgument(
                f"unknown session: {id}; make it with: sessionsdb register {shlex.quote(id)}, or "
                "leave the id out to begin a new session"
            ) from error
        if session.ended_at is not None:
            raise SessionEnded(id)
        newest = await db.broker.history(id, 1)
        return cls(db, id, is_new=False, last_seq=newest[-1].seq or 0 if newest else 0)

    @property
    def exists(self) -> bool:
        """Whether the session was made. A new one is made at its first message."""
        return self._exists.is_set()

    async def history(self, limit: int) -> list[SessionMessage]:
        """Return the last messages. The events begin behind them."""
        if limit < 1 or self._last_seq == 0:
            return []
        return await self._db.broker.history(self.id, limit, before=self._last_seq + 1)

    async def question(self) -> OpenQuestion | None:
        """Return the question that the session waits for, which the next message answers."""
        return (await self._db.broker.get(self.id)).held if self.exists else None

    async def send(self, text: str) -> Receipt:
        """Send a message. If the session waits for a person, it answers the open question."""
        if not self.exists:
            await self._db.broker.register(self.id, channel=CHANNEL, peer=_user())
            self._exists.set()
            if self._is_followed:
                # A message that is cancelled at once would leave no event behind the beginning.
                await self._has_begun.wait()
        session = await self._db.broker.get(self.id)
        if session.held is not None:
            with contextlib.suppress(QuestionAnswered, QuestionClosed):
                return await self._db.broker.answer(session.held.id, text, author=_user() or None)
        return await self._db.broker.send(self.id, text)

    async def replies(
        self, text: str, last: SessionMessage
    ) -> AsyncGenerator[SessionMessage, None]:
        """Yield the assistant messages of the turn that answered ``text``, up to the ``last`` one.

        Messages of other turns that came before the question are left out.
        """
        is_behind_question = False
        async for message in self._messages_up_to(last.seq or 0):
            if not is_behind_question:
                is_behind_question = message.role == "user" and message.content == text
            elif message.role == "assistant" and message.content and message.seq != last.seq:
                yield message
        yield last
        self._last_seq = last.seq or 0

    async def _messages_up_to(self, seq: int) -> AsyncGenerator[SessionMessage, None]:
        after = self._last_seq
        while after < seq:
            page = await self._db.broker.history(self.id, after=after, max_bytes=PAGE_BYTES)
            for message in page:
                after = message.seq or 0
                if after > seq:
                    return
                yield message
            if not page:
                return

    async def stop(self, position: int | None, *, is_running: bool) -> None:
        """Stop the running turn. If none runs, cancel the message at ``position``."""
        if is_running and await self._db.broker.interrupt(self.id):
            return
        if position is not None:
            receipt = Receipt(session_id=SessionId(self.id), position=position)
            await self._db.broker.cancel(receipt)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Follow the session, from its making on or from behind its last message."""
        self._is_followed = True
        await self._exists.wait()
        async with aclosing(self._db.broker.follow(self.id, after=self._last_seq)) as events:
            async for event in events:
                self._has_begun.set()
                yield event


@asynccontextmanager
async def own_worker(db: SessionsDB, agent: Handler | None) -> AsyncIterator[None]:
    """Run a worker during the block, if there is a handler. Its error ends the block.

    At the end of the block the worker gives the turns back that still run.
    """
    if agent is None:
        yield
        return
    async with running_beside(db.worker(agent, name="chat").run()):
        yield


@asynccontextmanager
async def running_beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` during the block. Its error ends the block and is raised."""
    task, block = asyncio.create_task(work), asyncio.current_task()
    assert block is not None

    def end_block(_: object) -> None:
        if not task.cancelled() and task.exception() is not None:
            block.cancel()

    task.add_done_callback(end_block)
    try:
        yield
    except asyncio.CancelledError:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            block.uncancel()
            raise error from None
        raise
    finally:
        task.remove_done_callback(end_block)
        task.cancel()
        await asyncio.wait((task,))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return ""
    except ImportError:  # Windows has no module pwd, and USERNAME may not be set
        return ""
