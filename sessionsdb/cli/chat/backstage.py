"""The database, in an event loop of a thread of its own.

The main thread belongs to the terminal: readline blocks it, and Ctrl-C arrives there. A worker of
the chat must renew its leases meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from sessionsdb import Event, Handler, Receipt, SessionMessage, SessionsDBError, UnknownSession
from sessionsdb.cli.chat.conversation import Conversation, own_worker
from sessionsdb.cli.target import Target


@dataclass(frozen=True)
class Opened:
    """The conversation is open."""

    id: str
    history: list[SessionMessage]


@dataclass(frozen=True)
class Sent:
    """A message is in the inbox. Events that it causes come later."""

    receipt: Receipt


@dataclass(frozen=True)
class Failed:
    """A call was refused, or with ``is_fatal`` the conversation is over."""

    error: BaseException
    is_fatal: bool = False


@dataclass(frozen=True)
class Logged:
    """A record of a logger that the user has to see."""

    text: str


Item = Opened | Sent | Failed | Logged | Event


class Backstage:
    """Runs a conversation in a thread, and reports to the main thread by ``items``."""

    def __init__(self, target: Target, id: str | None, agent: Handler | None, history: int) -> None:
        self._target, self._id, self._agent, self._history = target, id, agent, history
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="chat", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: Callable[[], None] | None = None
        self._is_left = False
        self._calls: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Backstage:
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_left = True
        if self._task is not None:
            self._call_in_loop(self._task.cancel)
        if self._wake is not None:
            self._thread.join()

    def start(self, wake: Callable[[], None]) -> None:
        """Open the conversation. ``wake`` is called when there are new items."""
        self._wake = wake
        self._thread.start()

    # ---- for the main thread -----------------------------------------------------------------

    def items(self) -> list[Item]:
        """Return the events since the last call, in order."""
        found: list[Item] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._items.get_nowait())
        return found

    def send(self, text: str) -> None:
        """Send a message. ``Sent`` or ``Failed`` is reported."""
        self._call(lambda: self._send(text))

    def stop(self, position: int | None, *, is_running: bool) -> None:
        """Stop the running turn, or cancel the message at ``position``."""
        self._call(lambda: self._conversation.stop(position, is_running=is_running))

    def _call(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        def start() -> None:
            task = asyncio.get_running_loop().create_task(self._report_refusal(make()))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

        self._call_in_loop(start)

    def _call_in_loop(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function)

    # ---- in the thread -----------------------------------------------------------------------

    def report(self, item: Item) -> None:
        self._items.put(item)
        if self._wake is not None:
            self._wake()

    def _run(self) -> None:
        try:
            asyncio.run(self._converse())
        except BaseException as error:  # the main thread raises it
            if not self._is_left:
                self.report(Failed(error, is_fatal=True))

    async def _converse(self) -> None:
        self._turn_taking = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        if self._is_left:
            return
        async with self._target.open() as db:
            self._conversation = await Conversation.open(db, self._id)
            history = await self._conversation.history(self._history)
            self.report(Opened(self._conversation.id, history))
            async with own_worker(db, self._agent):
                try:
                    await self._follow()
                finally:
                    for call in self._calls:
                        call.cancel()
                    await asyncio.gather(*self._calls, return_exceptions=True)

    async def _follow(self) -> None:
        async for event in self._conversation.events():
            async with self._turn_taking:
                self.report(event)
        raise UnknownSession(self._conversation.id)

    async def _send(self, text: str) -> None:
        # So the events of a message are reported behind its receipt.
        async with self._turn_taking:
            self.report(Sent(await self._conversation.send(text)))

    async def _report_refusal(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await call
        except SessionsDBError as error:
            self.report(Failed(error))
        except Exception as error:
            self.report(Failed(error, is_fatal=True))


class LogReporter(logging.Handler):
    """Reports warnings to the main thread, so that they do not break a line of the chat.

    Records of turns are left out: the events tell how turns end.
    """

    def __init__(self, backstage: Backstage) -> None:
        super().__init__(logging.WARNING)
        self._backstage = backstage

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "turn"):
            self._backstage.report(Logged(record.getMessage()))
