"""``SessionService``: the sessions of the Agent Development Kit (Google ADK) in this database.

::

    from sessionsdb.adapters.google_adk import SessionService

    runner = Runner(agent=agent, app_name="app", session_service=SessionService("sqlite:///app.db"))
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import (
    BaseSessionService,
    GetSessionConfig,
    ListSessionsResponse,
)
from google.adk.sessions.session import Session
from google.adk.sessions.state import State
from pydantic_core import to_jsonable_python
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.adapters import forms, ids
from sessionsdb.adapters.framework_sessions import DELETED, require_form
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.engine.runner import Operation
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.codec import StoredMessage, decode, encode
from sessionsdb.messages.json_text import parse
from sessionsdb.messages.state_values import Changes, encode_values
from sessionsdb.operations import entries, heads, state, tree
from sessionsdb.operations.entries import EntryPage
from sessionsdb.operations.heads import Head
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.state import ScopeKey, StateUpdate, peer_scope, session_scope
from sessionsdb.types import TranscriptEntry
from sessionsdb.validation import MAX_INTEGER

try:
    from google.adk.errors._stale_session_error import StaleSessionError
except ImportError:  # a private module
    StaleSessionError = ValueError

T = TypeVar("T")

FORM: Final = "google-adk"

_FIRST_PAGE = 50
"""The events of the first page where a timestamp tells how many are wanted. Each next page has
twice as many."""


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
        key = _Key(db.namespace, app_name, user_id, _given_id(session_id) or str(uuid.uuid4()))
        operation = partial(
            _create,
            key=key,
            changes=_changes(state or {}, db.limits.state_bytes),
            max_bytes=db.limits.state_bytes,
        )
        found = await open_database_of(db).write(operation, wakes=())
        if found is None:
            raise AlreadyExistsError(f"Session with id {key.session_id} already exists.")
        return _session(key, found)

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
        if not (given := _given_id(session_id)):
            return None
        db = await self._handles.current()
        key = _Key(db.namespace, app_name, user_id, given)
        found = await self._read(partial(_read, key=key, config=config or GetSessionConfig()))
        return None if found is None else _session(key, found)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """Return the sessions of an app, or of one of its users, without their events.

        They have their states, and are in the order of their newest events, oldest first.
        """
        db = await self._handles.current()
        found = await self._read(
            partial(_list, namespace=db.namespace, app_name=app_name, user_id=user_id)
        )
        sessions = [_session(key, one) for key, one in found]
        sessions.sort(key=lambda one: (one.last_update_time, one.user_id, one.id))
        return ListSessionsResponse(sessions=sessions)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session with its events and its own state. An unknown one is not an error.

        The states of the user and of the app stay.
        """
        if given := _given_id(session_id):
            db = await self._handles.current()
            key = _Key(db.namespace, app_name, user_id, given)
            await open_database_of(db).write(partial(_delete, key=key), wakes=DELETED)

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return the state of a user of an app. Its keys have no prefix."""
        db = await self._handles.current()
        key = _Key(db.namespace, app_name, user_id, "")
        return dict((await self._read(partial(state.read, key=key.user_scope))).values)

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
        key = _Key(db.namespace, session.app_name, session.user_id, session.id)
        message = event.model_dump(mode="json", exclude_none=True)
        stored = encode(message, max_bytes=db.limits.message_bytes)
        delta = event.actions.state_delta if event.actions else {}
        changes = _changes(delta, db.limits.state_bytes)
        loop = id(asyncio.get_running_loop())
        lock = self._locks.setdefault((loop, key.stored_id), asyncio.Lock())
        async with lock:
            operation = partial(
                _append,
                key=key,
                event=_NewEvent(_event_key(event.id), stored, changes),
                copy=_Copy.of(session),
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


# ---- values --------------------------------------------------------------------------------------


class _Key(NamedTuple):
    """A session of the framework, and its place in the database."""

    namespace: str
    app_name: str
    user_id: str
    session_id: str

    @property
    def stored_id(self) -> str:
        return validation.session_id(ids.join(self.app_name, self.user_id, self.session_id))

    @property
    def channel(self) -> str:
        return validation.name(f"adk:{self.app_name}", "app_name")

    @property
    def peer(self) -> str:
        return validation.name(self.user_id, "user_id", empty=True)

    @property
    def registration(self) -> Registration:
        mark = forms.mark(FORM)
        return Registration(self.namespace, self.stored_id, self.channel, self.peer, metadata=mark)

    @property
    def session_scope(self) -> ScopeKey:
        return session_scope(self.namespace, self.stored_id)

    @property
    def user_scope(self) -> ScopeKey:
        return peer_scope(self.namespace, self.channel, self.peer)

    @property
    def app_scope(self) -> ScopeKey:
        return peer_scope(
            self.namespace, "adk", validation.name(self.app_name, "app_name", empty=True)
        )


class _Changes(NamedTuple):
    """Changes of the three states."""

    session: Changes
    user: Changes
    app: Changes

    def updates(self, key: _Key) -> list[StateUpdate]:
        scopes = (key.session_scope, key.user_scope, key.app_scope)
        return [
            StateUpdate(scope, key.stored_id, changes)
            for scope, changes in zip(scopes, self, strict=True)
            if changes
        ]


class _NewEvent(NamedTuple):
    """An event to store."""

    key: str | None
    """Its id, if that can be the key of a message."""
    message: StoredMessage
    changes: _Changes


class _Copy(NamedTuple):
    """A writer's copy of a session: what tells whether it is the newest one."""

    revision: str | None
    last_update_time: float
    last_event_id: str | None

    @classmethod
    def of(cls, session: Session) -> _Copy:
        last = session.events[-1].id if session.events else None
        return cls(session._storage_update_marker, session.last_update_time, last)


class _Found(NamedTuple):
    """A session as it is stored."""

    revision: str
    last_update_time: float
    state: dict[str, Any]
    events: list[Event]


def _given_id(session_id: str | None) -> str:
    return (session_id or "").strip()


def _event_key(id: str) -> str | None:
    """Return the key of an event's message. An id that is not a text for an index is none."""
    try:
        return validation.message_key(id)
    except InvalidArgument:
        return None


def _changes(delta: dict[str, Any], max_bytes: int) -> _Changes:
    """Return the changes of a ``state_delta``. Keys with the prefix ``temp:`` are left out.

    A value without a JSON form is stored as its ``repr``, as the framework's own services do.
    """
    by_scope: tuple[dict[str, Any], ...] = ({}, {}, {})
    for name, value in delta.items():
        if name.startswith(State.APP_PREFIX):
            by_scope[2][name.removeprefix(State.APP_PREFIX)] = value
        elif name.startswith(State.USER_PREFIX):
            by_scope[1][name.removeprefix(State.USER_PREFIX)] = value
        elif not name.startswith(State.TEMP_PREFIX):
            by_scope[0][name] = value
    return _Changes(*(_encode(values, max_bytes) for values in by_scope))


def _encode(values: dict[str, Any], max_bytes: int) -> Changes:
    if not values:
        return {}
    plain = to_jsonable_python(values, inf_nan_mode="null", serialize_unknown=True)
    # A key whose value is None stays in a state of the framework.
    return dict(encode_values(plain, max_bytes=max_bytes))


def _session(key: _Key, found: _Found) -> Session:
    session = Session(
        app_name=key.app_name,
        user_id=key.user_id,
        id=key.session_id,
        state=found.state,
        events=found.events,
        last_update_time=found.last_update_time,
    )
    session._storage_update_marker = found.revision
    return session


# ---- operations ----------------------------------------------------------------------------------


def _create(connection: Connection, key: _Key, changes: _Changes, max_bytes: int) -> _Found | None:
    """Create a session, or return ``None`` if it exists."""
    head = heads.create(connection, key.registration)
    if head is None:
        return None
    state.merge(connection, changes.updates(key), max_bytes=max_bytes)
    return _Found(head.revision, head.created_at.timestamp(), _states(connection, [key])[0], [])


def _read(connection: Connection, key: _Key, config: GetSessionConfig) -> _Found | None:
    head = heads.read(connection, key.namespace, key.stored_id)
    if head is None:
        return None
    require_form(head, key.registration)
    found = _events(connection, key, config)
    newest = found[-1] if found else _newest(connection, key)
    updated = head.created_at.timestamp() if newest is None else _timestamp(newest.message)
    events = [_event(entry) for entry in found]
    return _Found(head.revision, updated, _states(connection, [key])[0], events)


def _events(connection: Connection, key: _Key, config: GetSessionConfig) -> list[TranscriptEntry]:
    """Return the entries that a configuration asks for."""
    limit = MAX_INTEGER if config.num_recent_events is None else config.num_recent_events
    if config.after_timestamp is None:
        return entries.read_entries(connection, _page(key, limit)) if limit else []
    found: list[TranscriptEntry] = []
    for entry in _newest_first(connection, key):
        if len(found) >= limit or _timestamp(entry.message) < config.after_timestamp:
            break
        found.append(entry)
    return found[::-1]


def _newest_first(connection: Connection, key: _Key) -> Iterator[TranscriptEntry]:
    """Yield the entries from the newest one on, read in pages."""
    size, before = _FIRST_PAGE, None
    while page := entries.read_entries(connection, _page(key, size, before)):
        yield from reversed(page)
        size, before = size * 2, page[0].seq


def _newest(connection: Connection, key: _Key) -> TranscriptEntry | None:
    return next(iter(entries.read_entries(connection, _page(key, 1))), None)


def _page(key: _Key, limit: int, before: int | None = None) -> EntryPage:
    return EntryPage(key.namespace, key.stored_id, limit, before=before)


def _event(entry: TranscriptEntry) -> Event:
    if "author" not in entry.message:
        raise InvalidArgument(
            f"message {entry.seq} of session {entry.session_id} is no event of {FORM}; read the "
            "session with store or broker, or remove the message"
        )
    return Event.model_validate(entry.message)


def _timestamp(message: dict[str, Any]) -> float:
    found = message.get("timestamp")
    return float(found) if isinstance(found, (int, float)) else 0.0


def _states(connection: Connection, keys: list[_Key]) -> list[dict[str, Any]]:
    """Return for each session its state, the user's and the app's in one, by prefixed key."""
    scopes = [(key.session_scope, key.user_scope, key.app_scope) for key in keys]
    wanted = [scope for three in scopes for scope in three]
    found = state.read_values(connection, keys[0].namespace, wanted) if keys else {}
    prefixes = ("", State.USER_PREFIX, State.APP_PREFIX)
    return [
        {
            prefix + name: value
            for prefix, scope in zip(prefixes, three, strict=True)
            for name, value in found[scope[1:3]].items()
        }
        for three in scopes
    ]


def _list(
    connection: Connection, namespace: str, app_name: str, user_id: str | None
) -> list[tuple[_Key, _Found]]:
    any_key = _Key(namespace, app_name, user_id or "", "")
    peer = None if user_id is None else any_key.peer
    rows = [
        (_Key(namespace, app_name, head.peer, ids.last_name(head.id)), head, newest)
        for head, newest in heads.of_channel_with_newest(
            connection, namespace, any_key.channel, peer
        )
        if forms.form_of(head) in (FORM, None)
    ]
    # A fork of a session has another id, which the framework can't name.
    rows = [row for row in rows if row[0].stored_id == row[1].id]
    states = _states(connection, [key for key, _, _ in rows])
    return [
        (
            key,
            _Found(
                head.revision,
                head.created_at.timestamp() if newest is None else _timestamp(parse(newest)),
                values,
                [],
            ),
        )
        for (key, head, newest), values in zip(rows, states, strict=True)
    ]


def _delete(connection: Connection, key: _Key) -> None:
    head = heads.read(connection, key.namespace, key.stored_id)
    if head is not None:
        require_form(head, key.registration)
        tree.delete_session(connection, key.namespace, key.stored_id, "detach")


def _append(
    connection: Connection, key: _Key, event: _NewEvent, copy: _Copy, max_bytes: int
) -> str | None:
    """Store an event, and return the session's new revision, or ``None`` if it stands there."""
    head = heads.lock(connection, key.namespace, key.stored_id)
    if head is None:
        raise SessionNotFoundError(f"Session {key.session_id} not found.")
    require_form(head, key.registration)
    name = event.key
    if name is not None:
        same = entries.find(connection, key.namespace, name, key.stored_id)
        if same is not None and same.message == decode(*event.message):
            return None
        if same is not None:  # another event with the same id
            name = None
    if _is_stale(connection, key, head, copy):
        raise StaleSessionError(
            f"session {key.session_id} was changed in the database after this copy of it was read; "
            "get it again and repeat the turn"
        )
    head = heads.append(connection, key.namespace, head, [event.message], [name])
    state.merge(connection, event.changes.updates(key), max_bytes=max_bytes)
    return head.revision


def _is_stale(connection: Connection, key: _Key, head: Head, copy: _Copy) -> bool:
    """Return whether the stored session is newer than a writer's copy.

    A copy without a revision was not made by this service: its newest event is compared then.
    """
    if copy.revision is not None:
        return copy.revision != head.revision
    newest = _newest(connection, key)
    if newest is None or _timestamp(newest.message) <= copy.last_update_time:
        return False
    return newest.message.get("id") != copy.last_event_id
