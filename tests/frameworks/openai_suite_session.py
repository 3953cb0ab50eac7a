"""The adapter in the place of the SDK's own session classes, for the SDK's own tests.

The tests construct ``SQLiteSession``, ``AsyncSQLiteSession`` and ``SQLAlchemySession`` with files,
engines and URLs of SQLite. On PostgreSQL each of these databases is a namespace.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sessionsdb import SessionsDB
from sessionsdb.adapters import openai_agents
from sessionsdb.adapters.handles import Handles

POSTGRESQL_VARIABLE = "SESSIONSDB_TEST_SUITE_URL"
"""A migrated PostgreSQL database. Without it the tests run on SQLite."""

URL = os.environ.get(POSTGRESQL_VARIABLE)


class _HandlesInNamespace(Handles):
    """The handles of a namespace of ``URL``."""

    def __init__(self, name: str) -> None:
        super().__init__(URL or "sqlite://")
        self._namespace = name

    async def current(self) -> SessionsDB:
        return (await super().current()).in_namespace(self._namespace)


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
        in_memory = str(db_path) == ":memory:"
        if URL is not None:
            if engine is not None and "memory" not in str(engine.url):
                place = str(engine.url)
            else:
                place = f"{os.getpid()}-{id(self if engine is None else engine)}-{os.urandom(8)!r}"
                if engine is not None:  # all sessions of an engine in memory have one database
                    place = (
                        vars(engine).setdefault("place", place)
                        if hasattr(engine, "__dict__")
                        else place
                    )
                elif not in_memory:
                    place = str(db_path)
            handles: Handles = _HandlesInNamespace(hashlib.sha256(place.encode()).hexdigest()[:64])
        elif engine is not None:
            handles = Handles(engine)
        else:
            handles = Handles("sqlite://" if in_memory else f"sqlite:///{db_path}")
        self._bind(session_id, handles, session_settings)

    @classmethod
    def from_url(
        cls, session_id: str, *, url: str, engine_kwargs: Any = None, **options: Any
    ) -> Session:
        return cls(session_id, engine=create_async_engine(url, **(engine_kwargs or {})), **options)

    @property
    def engine(self) -> AsyncEngine | None:
        return self._engine

    def close(self) -> Any:  # awaited or not, as by the SDK's tests
        class Closed:
            def __await__(closed) -> Any:
                return self._handles.close().__await__()

        return Closed()
