"""google-adk: ``DatabaseSessionService``, whose sessions are appended to an event at a time.

It has no save, and ``list_sessions`` has no pages: it returns every session there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai.types import Content, Part

from benchmarks.cases import APPEND, HISTORY, LIST, LOAD, PAGE
from benchmarks.filling import Size, chats_and_books, every_id
from benchmarks.messages import text
from benchmarks.peers import POOL, async_url, make_durable
from devtools.databases import Database

APP, USER = "bench", "user"


class GoogleADK:
    offers = frozenset((APPEND, HISTORY, LOAD, LIST))

    def __init__(self, service: DatabaseSessionService, size: Size) -> None:
        self._service = service
        self._ids = size.ids()
        self._sessions: dict[int, Session] = {}

    def form(self, message: dict[str, Any]) -> Any:
        role = "model" if message["role"] == "assistant" else "user"
        return role, Content(role=role, parts=[Part(text=message["content"])])

    async def append(self, session: int, messages: Sequence[Any]) -> object:
        # Like the runner of google-adk, load the session once and keep it.
        if session not in self._sessions:
            self._sessions[session] = await self._get(session, 0)
        held = self._sessions[session]
        for author, content in messages:
            await self._service.append_event(held, Event(author=author, content=content))
        held.events.clear()
        return held

    async def history(self, session: int) -> object:
        return await self._get(session, PAGE)

    async def load(self, session: int) -> Sequence[object]:
        return (await self._get(session, None)).events

    async def save(self, session: int, messages: Sequence[Any]) -> object:
        raise NotImplementedError

    async def list(self) -> Sequence[object]:
        return (await self._service.list_sessions(app_name=APP, user_id=USER)).sessions

    async def _get(self, session: int, events: int | None) -> Session:
        found = await self._service.get_session(
            app_name=APP,
            user_id=USER,
            session_id=self._ids[session],
            config=None if events is None else GetSessionConfig(num_recent_events=events),
        )
        assert found is not None
        return found


@asynccontextmanager
async def opened(database: Database, size: Size) -> Any:
    service = DatabaseSessionService(
        async_url(database.url), pool_size=POOL, max_overflow=0, pool_timeout=600
    )
    make_durable(service.db_engine)
    try:
        await _fill(service, database, size)
        yield GoogleADK(service, size)
    finally:
        await service.db_engine.dispose()


async def _fill(service: DatabaseSessionService, database: Database, size: Size) -> None:
    """Copy a session and an event that the service has written itself."""
    first = await service.create_session(app_name=APP, user_id=USER, session_id="first")
    content = Content(role="user", parts=[Part(text=text(0))])
    await service.append_event(first, Event(author="user", content=content))
    if database.kind == "sqlite":
        at = "strftime('%Y-%m-%d %H:%M:%S.000000', 1704067200 + {}, 'unixepoch')"
    else:
        at = "timestamp '2024-01-01' + make_interval(secs => {})"
    await database.query(
        "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time)"
        f" {every_id(database.kind, size)}"
        f" SELECT app_name, user_id, ids.id, state, {at.format('n')}, {at.format('n')}"
        " FROM sessions, ids WHERE sessions.id = 'first'"
    )
    await database.query(
        "INSERT INTO events"
        " (id, app_name, user_id, session_id, invocation_id, timestamp, event_data)"
        f" {chats_and_books(database.kind, size)}"
        " SELECT m.session || '-' || m.seq, app_name, user_id, m.session, invocation_id,"
        f" {at.format('m.seq')}, event_data"
        " FROM events, messages AS m WHERE events.session_id = 'first'"
    )
    await database.query("ANALYZE")
