"""The load of a database, for readers of metrics that come on threads of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from functools import partial

from sessionsdb.engine import urls
from sessionsdb.errors import SessionsDBError
from sessionsdb.operations import stats
from sessionsdb.operations.stats import Load
from sessionsdb.runtime.open_database import OpenDatabase

CACHE_SECONDS = 5.0
"""How long an answer serves: several readers, and several gauges of one, ask once."""

PATIENCE_SECONDS = 2.0
"""How long a reader waits. A gauge that can't be read then is left out, not told from memory."""


class LoadSource:
    """Asks a database for its load when a reader collects, at most once in a while.

    The reader's thread waits for the answer; the event loop never does. A reader that collects on
    the loop itself gets the last answer, and its asking is what brings the next one.
    """

    def __init__(self, database: OpenDatabase, namespaces: Collection[str] | None) -> None:
        self._database = database
        self._namespaces = None if namespaces is None else sorted(namespaces)
        self._loop = asyncio.get_running_loop()
        self._load: Load | None = None
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        url = database.engine.url
        name = str(url.database or ":memory:")
        kind = urls.kind(url)
        self.attributes = {
            "db.system.name": kind,
            # Never the folder: it says more about the machine than about the database.
            "db.namespace": name.rpartition("/")[2] if kind == "sqlite" else name,
        }

    def load(self) -> Load | None:
        if time.monotonic() - self._asked_at < CACHE_SECONDS:
            return self._load
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return self._asked_from_outside()
        if here is self._loop and (self._asking is None or self._asking.done()):
            self._asking = here.create_task(self._ask())
        return self._load

    def _asked_from_outside(self) -> Load | None:
        asking = self._ask()
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the loop is closed
            asking.close()
            return None
        try:
            answer.result(PATIENCE_SECONDS)
        except TimeoutError:
            answer.cancel()
            return None
        return self._load

    async def _ask(self) -> None:
        try:
            self._load = await self._database.read(partial(stats.load, namespaces=self._namespaces))
        except SessionsDBError:  # whoever works with the database says so
            self._load = None
        self._asked_at = time.monotonic()
