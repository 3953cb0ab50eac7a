"""A PostgreSQL schema for the tests of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from sqlalchemy import delete
from sqlalchemy.schema import DropSchema

from sessionsdb.database import SessionsDB
from sessionsdb.engine import urls
from sessionsdb.errors import InvalidArgument
from sessionsdb.schema import metadata


class TemporarySchema:
    """A migrated schema of a new name in a PostgreSQL database.

    The role of the URL needs the right CREATE on the database. The methods block, and can be called
    while an event loop runs.
    """

    def __init__(self, url: str) -> None:
        parsed = urls.parse(url)
        if urls.schema_of(parsed) is not None:
            raise InvalidArgument(
                "the URL of a database for tests names no schema: each run makes one of its own"
            )
        self.name = f"sessionsdb_test_{uuid4().hex[:12]}"
        self.url = parsed.update_query_dict({"schema": self.name}).render_as_string(
            hide_password=False
        )
        self._made = False

    def fresh_url(self) -> str:
        """Return the URL of the schema, with empty tables. The first call makes them."""
        if self._made:
            _run(self._empty)
        else:
            _run(self._make)
            self._made = True
        return self.url

    def drop(self) -> None:
        """Drop the schema with its tables. Does nothing if it was not made."""
        if self._made:
            _run(self._drop)
            self._made = False

    async def _make(self) -> None:
        async with SessionsDB(self.url, migrate=True):
            pass

    async def _empty(self) -> None:
        async with SessionsDB(self.url) as db, db.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                await connection.execute(delete(table))

    async def _drop(self) -> None:
        async with SessionsDB(self.url) as db, db.engine.begin() as connection:
            await connection.execute(DropSchema(self.name, cascade=True))


def _run(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in a thread: this one may have an event loop."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: asyncio.run(call())).result()
