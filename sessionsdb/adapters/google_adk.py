"""``SessionService``: the sessions of the Agent Development Kit (Google ADK) in this database.

::

    from sessionsdb.adapters.google_adk import SessionService

    runner = Runner(agent=agent, app_name="app", session_service=SessionService("sqlite:///app.db"))
"""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import (
    BaseSessionService,
    GetSessionConfig,
    ListSessionsResponse,
)
from google.adk.sessions.session import Session
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.adapters import google_adk_operations as operations
from sessionsdb.adapters import ids
from sessionsdb.adapters.framework_sessions import DELETED
from sessionsdb.adapters.google_adk_operations import StaleSessionError
from sessionsdb.adapters.google_adk_values import (
    NewEvent,
    SessionCopy,
    SessionPlace,
    event_key,
    framework_session,
    given_id,
    state_changes,
)
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.engine.runner import Operation
from sessionsdb.messages.codec import encode
from sessionsdb.operations import state as states

__all__ = ["SessionService", "StaleSessionError"]

T = TypeVar("T")


class SessionService(BaseSessionService):
    """The sessions of all users and apps of one namespace.

    ``db_or_url``: a ``SessionsDB``, an ``AsyncEngine`` or a URL.

    Each event is one message, with the id of the event as its key. An event and its changes of the
    session's, the user's and the app's state are committed in one transaction. Two writers of one
    session never mix: the one whose copy is not the newest gets ``StaleSessionError``. An event
    that is appended again with the same id and content is stored once.

    Sessions have the channel ``adk:APP``, the user as their peer, and the id ``APP/USER/ID``. A
    slash inside of a name is written ``%2F``, a percent sign ``%25``. The state of a user is the
    state of scope ``peer`` of these sessions. The state of an app is that of the channel ``adk``
    and the peer ``APP``. The keys of a state have 1 to 256 characters, and one state at most
    ``Limits.state_bytes``.
    """

    def __init__(self, db_or_url: SessionsDB | AsyncEngine | str) -> None:
        self._handles = Handles(db_or_url)
        self._locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()
        """Appends to one session in one event loop wait for each other. So two tasks that share
        one session object both find its newest revision in it."""

    def stored_id(self, *, app_name: str, user_id: str, session_id: str) -> str:
        """Return the id under which ``broker``, ``store`` and the reports know a session."""
        return ids.join(app_name, user_id, session_id.strip())

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> Session:
        """Create a session with this state, and return it.

        Raises ``AlreadyExistsError`` if the session exists. Of two callers at the same time one
        creates it.
        """
        db = await self._handles.current()
        key = SessionPlace(
            db.namespace, app_name, user_id, given_id(session_id) or str(uuid.uuid4())
        )
        operation = partial(
            operations.create_session,
            key=key,
            changes=state_changes(state or {}, db.limits.state_bytes),
            max_bytes=db.limits.state_bytes,
        )
        found = await open_database_of(db).write(operation, wakes=())
        if found is None:
            raise AlreadyExistsError(f"Session with id {key.session_id} already exists.")
        return framework_session(key, found)

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Return a session with its events and its states, or ``None``.

        With a ``config`` only the events of the answer are read. ``after_timestamp`` ends at the
        newest event that is older.
        """
        if not (given := given_id(session_id)):
            return None
        db = await self._handles.current()
        key = SessionPlace(db.namespace, app_name, user_id, given)
        found = await self._read(
            partial(operations.read_session, key=key, config=config or GetSessionConfig())
        )
        return None if found is None else framework_session(key, found)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """Return the sessions of an app, or of one of its users, without their events.

        They have their states, and are in the order of their newest events, oldest first.
        """
        db = await self._handles.current()
        found = await self._read(
            partial(
                operations.list_sessions, namespace=db.namespace, app_name=app_name, user_id=user_id
            )
        )
        sessions = [framework_session(key, one) for key, one in found]
        sessions.sort(key=lambda one: (one.last_update_time, one.user_id, one.id))
        return ListSessionsResponse(sessions=sessions)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session with its events and its own state. An unknown one is not an error.

        The states of the user and of the app stay.
        """
        if given := given_id(session_id):
            db = await self._handles.current()
            key = SessionPlace(db.namespace, app_name, user_id, given)
            await open_database_of(db).write(
                partial(operations.delete_session, key=key), wakes=DELETED
            )

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return the state of a user of an app. Its keys have no prefix."""
        db = await self._handles.current()
        key = SessionPlace(db.namespace, app_name, user_id, "")
        return dict((await self._read(partial(states.read, key=key.user_scope))).values)

    async def append_event(self, session: Session, event: Event) -> Event:
        """Store an event with its changes of the state, and return it. Partial events are not
        stored.

        Raises ``SessionNotFoundError``, and ``StaleSessionError`` if another writer changed the
        stored session after ``session`` was read. Nothing was stored then.
        """
        if event.partial:
            return event
        self._apply_temp_state(session, event)
        event = self._trim_temp_delta_state(event)
        db = await self._handles.current()
        key = SessionPlace(db.namespace, session.app_name, session.user_id, session.id)
        message = event.model_dump(mode="json", exclude_none=True)
        stored = encode(message, max_bytes=db.limits.message_bytes)
        delta = event.actions.state_delta if event.actions else {}
        changes = state_changes(delta, db.limits.state_bytes)
        loop = id(asyncio.get_running_loop())
        lock = self._locks.setdefault((loop, key.stored_id), asyncio.Lock())
        async with lock:
            operation = partial(
                operations.append_event,
                key=key,
                event=NewEvent(event_key(event.id), stored, changes),
                copy=SessionCopy.of(session),
                max_bytes=db.limits.state_bytes,
            )
            revision = await open_database_of(db).write(operation, wakes=())
            if revision is None:
                return event
            session._storage_update_marker = revision
            session.last_update_time = event.timestamp
            return self._commit_event_to_session(session, event)

    async def flush(self) -> None:
        """Return at once: each event is stored when ``append_event`` returns."""

    async def close(self) -> None:
        """Close the database, if this service opened it. The next use opens it again."""
        await self._handles.close()

    async def __aenter__(self) -> SessionService:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def _read(self, operation: Operation[T]) -> T:
        database = open_database_of(await self._handles.current())
        return await database.read_snapshot(operation)
