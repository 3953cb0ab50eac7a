"""The handle of an adapter: the one that was given, or one for each event loop of a URL.

Frameworks construct their stores outside of any event loop, and use one object in several loops
one after another: ``asyncio.run`` twice, or ``Runner.run_sync``. A ``SessionsDB`` belongs to one
loop. So an adapter that was given a URL has one handle in each loop. All adapters of a loop with
the same URL share it, because a web application makes a new object for each request.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import weakref
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.database import SessionsDB
from sessionsdb.engine import urls
from sessionsdb.types import Durability, Limits

ADAPTER_LIMITS: Final = Limits(message_bytes=64 * 1024 * 1024, state_bytes=16 * 1024 * 1024)
"""The limits of a handle that an adapter makes. The stores of the frameworks have none, and a tool
result may be larger than the 1 MiB that a message has otherwise."""


class Handles:
    """Gives an adapter its handle in the running event loop.

    ``db_or_url``: a ``SessionsDB``, which is used as it is, in its own event loop only. The caller
    closes it. Or an ``AsyncEngine``, or a URL as ``SessionsDB`` takes it. They are opened at the
    first use, once by however many callers, and have ``ADAPTER_LIMITS``.

    A handle of a URL is closed with its event loop, or by ``close``. ``sqlite://`` is a temporary
    database of this object alone: a file that is removed with the object. A database in memory
    would be lost with its event loop.

    Raises ``InvalidArgument`` for a URL or an engine that can't be used.
    """

    def __init__(self, db_or_url: SessionsDB | AsyncEngine | str) -> None:
        self._given: SessionsDB | None = None
        self._last: _LoopHandle | None = None
        self._durability: Durability = "full"
        self._url = ""
        self._owns_given = isinstance(db_or_url, AsyncEngine)
        self._is_given_closed = False
        if isinstance(db_or_url, SessionsDB):
            self._given = db_or_url
        elif isinstance(db_or_url, AsyncEngine):
            self._given = SessionsDB(db_or_url, limits=ADAPTER_LIMITS)
        elif urls.is_in_memory(parsed := urls.parse(db_or_url)) and urls.kind(parsed) == "sqlite":
            folder = tempfile.mkdtemp(prefix="sessionsdb-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._url = f"sqlite:///{Path(folder, 'sessions.db').as_posix()}"
            self._durability = "normal"
        else:
            self._url = str(db_or_url)

    async def current(self) -> SessionsDB:
        """Return the handle of the running event loop. It opens itself at its first use."""
        if self._given is not None:
            if self._is_given_closed:
                await self._given.open()
                self._is_given_closed = False
            return self._given
        last = self._last
        if last is None or last.is_closed or last.loop is not asyncio.get_running_loop():
            last = self._last = self._of_loop()
            await last.close_with_loop()
        return last.db

    async def close(self) -> None:
        """Close the handle of the running event loop, if no other adapter has it.

        A handle that the caller gave stays open. The next use opens the database again. A handle
        in another event loop is closed with that loop.
        """
        if self._given is not None:
            if self._owns_given:
                self._is_given_closed = True
                await self._given.close()
            return
        with _LOCK:
            shared = _SHARED.get((asyncio.get_running_loop(), self._url))
            if shared is None:
                return
            shared.users.discard(self)
            if shared.users:
                return
        await shared.close()

    def _of_loop(self) -> _LoopHandle:
        key = (asyncio.get_running_loop(), self._url)
        with _LOCK:
            for other in [other for other in _SHARED if other[0].is_closed()]:
                del _SHARED[other]
            shared = _SHARED.get(key)
            if shared is None:
                shared = _SHARED[key] = _LoopHandle(key, self._durability)
            shared.users.add(self)
        return shared


_LoopKey = tuple[asyncio.AbstractEventLoop, str]


class _LoopHandle:
    """One handle that all adapters of one event loop with the same URL share."""

    def __init__(self, key: _LoopKey, durability: Durability) -> None:
        self._key = key
        self.loop = key[0]
        self.db = SessionsDB(key[1], durability=durability, limits=ADAPTER_LIMITS)
        self.users: weakref.WeakSet[Handles] = weakref.WeakSet()
        self.is_closed = False
        self._closing: AsyncGenerator[None, None] | None = None

    async def close_with_loop(self) -> None:
        """Have the event loop close the handle at its end, by the one hook that all loops have.

        ``asyncio.run`` and test runners shut down the asynchronous generators of their loop before
        they close it. That ends the generator here, which then closes the handle. A loop may be
        used again after that, as ``Runner.run_sync`` does: the adapter then makes another handle.
        """
        if self._closing is None:
            self._closing = self._closed_at_the_end()
            await anext(self._closing)

    async def _closed_at_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._close()

    async def close(self) -> None:
        if self._closing is not None:
            await self._closing.aclose()
        await self._close()

    async def _close(self) -> None:
        self.is_closed = True
        with _LOCK:
            if _SHARED.get(self._key) is self:
                del _SHARED[self._key]
        await self.db.close()


_LOCK = threading.Lock()
"""Guards ``_SHARED`` and the users in it: event loops run in several threads."""

_SHARED: dict[_LoopKey, _LoopHandle] = {}
"""The open handles of all event loops."""
