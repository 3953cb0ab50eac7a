"""The load of a database for metrics readers, which call from threads of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from functools import partial

from sessionsdb.engine import urls
from sessionsdb.engine.postgresql.search_path import schema_of
from sessionsdb.errors import SessionsDBError
from sessionsdb.operations import stats
from sessionsdb.operations.stats import Load
from sessionsdb.runtime.open_database import OpenDatabase

CACHE_SECONDS = 5.0
"""A load is read again after this time, so that several readers and gauges share one query."""

MAX_WAIT_SECONDS = 2.0
"""A reader waits at most this long. Then its gauges have no value, instead of an old one."""


class LoadSource:
    """Reads the load of a database when a metrics reader collects.

    A reader's thread waits for the query, and the event loop never does. A reader that collects on
    the loop itself gets the last load, and starts the query for the next one.
    """

    def __init__(self, database: OpenDatabase, namespaces: Collection[str] | None) -> None:
        self._database = database
        self._namespaces = None if namespaces is None else sorted(namespaces)
        self._loop = asyncio.get_running_loop()
        self._load: Load | None = None
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        url = database.sync_engine.url
        name = str(url.database or ":memory:")
        kind = urls.kind(url)
        schema = schema_of(database.sync_engine)
        self.attributes = {
            "db.system.name": kind,
            # Without the folder, which describes the machine and not the database.
            # A schema stands behind the database, as the conventions for PostgreSQL want it.
            "db.namespace": (
                name.rpartition("/")[2]
                if kind == "sqlite"
                else "|".join(filter(None, (name, schema)))
            ),
        }

    def load(self) -> Load | None:
        if time.monotonic() - self._read_at < CACHE_SECONDS:
            return self._load
        try:
            running_loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._read_from_thread()
        if running_loop is self._loop and (self._reading is None or self._reading.done()):
            self._reading = running_loop.create_task(self._read())
        return self._load

    def _read_from_thread(self) -> Load | None:
        reading = self._read()
        try:
            done = asyncio.run_coroutine_threadsafe(reading, self._loop)
        except RuntimeError:  # the loop is closed
            reading.close()
            return None
        try:
            done.result(MAX_WAIT_SECONDS)
        except TimeoutError:
            done.cancel()
            return None
        return self._load

    async def _read(self) -> None:
        try:
            self._load = await self._database.read(partial(stats.load, namespaces=self._namespaces))
        except SessionsDBError:  # callers of the database get and report such errors
            self._load = None
        self._read_at = time.monotonic()
