"""Session services of Google ADK: ours, and its ``DatabaseSessionService``.

A writer loads its session once and keeps it, as the runner of ADK does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService, Session
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.genai.types import Content, Part

from benchmarks.adapters import LAST, READ, Opened, Store
from benchmarks.messages import text
from benchmarks.peers import POOL, async_url, make_durable
from benchmarks.results import OURS
from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.adapters.google_adk import SessionService

OWNER: dict[str, str] = {"app_name": "bench", "user_id": "user"}


class _Service:
    offers = frozenset(("add", READ, "list"))

    def __init__(self, service: BaseSessionService) -> None:
        self._service = service
        self._held: dict[int, Session] = {}
        self._content = Content(role="user", parts=[Part(text=text(1))])

    async def fill(self, sessions: Sequence[int], messages: int) -> None:
        for number in sessions:
            self._held[number] = await self._service.create_session(**OWNER, session_id=_id(number))
            for _ in range(messages):
                await self.add(number)

    async def add(self, session: int) -> object:
        held = self._held[session]
        added = await self._service.append_event(held, Event(author="user", content=self._content))
        held.events.clear()
        return added

    async def read(self, session: int) -> Sequence[object]:
        found: Any = await self._service.get_session(
            **OWNER, session_id=_id(session), config=GetSessionConfig(num_recent_events=LAST)
        )
        events: Sequence[object] = found.events
        return events

    async def pop(self, session: int) -> object:
        raise NotImplementedError

    async def list(self) -> Sequence[object]:
        return (await self._service.list_sessions(**OWNER)).sessions


def _id(number: int) -> str:
    return f"session-{number}"


@asynccontextmanager
async def _ours(database: Database) -> AsyncIterator[Store]:
    async with SessionsDB(database.url) as db:
        yield _Service(SessionService(db))


@asynccontextmanager
async def _adk(database: Database) -> AsyncIterator[Store]:
    service = DatabaseSessionService(
        async_url(database.url), pool_size=POOL, max_overflow=0, pool_timeout=600
    )
    make_durable(service.db_engine)
    try:
        yield _Service(service)
    finally:
        await service.close()


SIDES: dict[str, Opened] = {OURS: _ours, "google-adk": _adk}
