"""The values of ``SessionService`` of ``google_adk.py``: places of sessions, states, events."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from google.adk.events.event import Event
from google.adk.sessions.session import Session
from google.adk.sessions.state import State
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from sessionsdb import validation
from sessionsdb.adapters import forms, ids
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.state_values import Changes, encode_values
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.state import ScopeKey, StateUpdate, peer_scope, session_scope

FORM: Final = "google-adk"


class SessionPlace(NamedTuple):
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


class StateChanges(NamedTuple):
    """Changes of the three states."""

    session: Changes
    user: Changes
    app: Changes

    def updates(self, key: SessionPlace) -> list[StateUpdate]:
        scopes = (key.session_scope, key.user_scope, key.app_scope)
        return [
            StateUpdate(scope, key.stored_id, changes)
            for scope, changes in zip(scopes, self, strict=True)
            if changes
        ]


class NewEvent(NamedTuple):
    """An event to store."""

    key: str | None
    """Its id, if that can be the key of a message."""
    message: StoredMessage
    changes: StateChanges


class SessionCopy(NamedTuple):
    """A writer's copy of a session: what tells whether it is the newest one."""

    revision: str | None
    last_update_time: float
    last_event_id: str | None

    @classmethod
    def of(cls, session: Session) -> SessionCopy:
        last = session.events[-1].id if session.events else None
        return cls(session._storage_update_marker, session.last_update_time, last)


class StoredSession(NamedTuple):
    """A session as it is stored."""

    revision: str
    last_update_time: float
    state: dict[str, Any]
    events: list[Event]


def as_event(message: dict[str, Any]) -> Event | None:
    """Return a message as an event, or ``None`` if it is of another form."""
    if "author" not in message:
        return None
    try:
        return Event.model_validate(message)
    except ValidationError:
        return None


def given_id(session_id: str | None) -> str:
    return (session_id or "").strip()


def event_key(id: str) -> str | None:
    """Return the key of an event's message. An id that is not a text for an index is none."""
    try:
        return validation.message_key(id)
    except InvalidArgument:
        return None


def state_changes(delta: dict[str, Any], max_bytes: int) -> StateChanges:
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
    return StateChanges(*(_encode(values, max_bytes) for values in by_scope))


def _encode(values: dict[str, Any], max_bytes: int) -> Changes:
    if not values:
        return {}
    plain = to_jsonable_python(values, inf_nan_mode="null", serialize_unknown=True)
    # A key whose value is None stays in a state of the framework.
    return dict(encode_values(plain, max_bytes=max_bytes))


def framework_session(key: SessionPlace, found: StoredSession) -> Session:
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
