"""The adapter in the place of the SDK's own session classes, for the SDK's own tests.

The tests construct ``SQLiteSession``, ``AsyncSQLiteSession`` and ``SQLAlchemySession`` with files,
engines and URLs of SQLite. On PostgreSQL each of these databases is a namespace of one database.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from openai_suite_names import URL_VARIABLE
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sessionsdb import SessionsDB
from sessionsdb.adapters import openai_agents
from sessionsdb.adapters.handles import Handles

URL = os.environ.get(URL_VARIABLE)

_IN_MEMORY: WeakKeyDictionary[Engine, Handles] = WeakKeyDictionary()
"""The databases of engines in memory. The sessions of one engine share one."""


class _Namespace(Handles):
    """A namespace in the place of a database."""

    def __init__(self, url: str, place: str) -> None:
        super().__init__(url)
        self._namespace = hashlib.sha256(place.encode()).hexdigest()

    async def current(self) -> SessionsDB:
        return (await super().current()).in_namespace(self._namespace)


def _handles(file: str | None) -> Handles:
    """Return the database of a file, or a new one of its own."""
    if URL is not None:
        return _Namespace(URL, file or uuid4().hex)
    return Handles("sqlite://" if file is None else f"sqlite:///{file}")


def _handles_of_engine(engine: AsyncEngine) -> Handles:
    file = engine.url.database
    if file not in (None, "", ":memory:"):
        return _handles(file)
    if engine.sync_engine not in _IN_MEMORY:
        _IN_MEMORY[engine.sync_engine] = _handles(None)
    return _IN_MEMORY[engine.sync_engine]


class Session(openai_agents.Session):
    def __init__(
        self,
        session_id: str,
        db_path: str | Path = ":memory:",
        *,
        engine: AsyncEngine | None = None,
        session_settings: Any = None,
        **_ignored: Any,
    ) -> None:
        self._engine = engine
        if engine is not None:
            handles = _handles_of_engine(engine)
        else:
            handles = _handles(None if str(db_path) == ":memory:" else str(db_path))
        self._bind(session_id, handles, session_settings)

    @classmethod
    def from_url(
        cls, session_id: str, *, url: str, engine_kwargs: Any = None, **options: Any
    ) -> Session:
        return cls(session_id, engine=create_async_engine(url, **(engine_kwargs or {})), **options)

    @property
    def engine(self) -> AsyncEngine | None:
        return self._engine

    def close(self) -> Any:
        """The SDK's tests await the result of some classes, and leave that of others."""
        closing = self._handles.close

        class Closing:
            def __await__(self) -> Any:
                return closing().__await__()

        return Closing()
