"""The transactions of ``SessionService`` of ``google_adk.py``, on a connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.state import State
from google.genai import types
from sqlalchemy import Connection

from sessionsdb.adapters import forms, ids
from sessionsdb.adapters.framework_sessions import require_form
from sessionsdb.adapters.google_adk_values import (
    FORM,
    NewEvent,
    SessionCopy,
    SessionPlace,
    StateChanges,
    StoredSession,
    as_event,
)
from sessionsdb.engine.clock import as_utc
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.attribution import attributed_text
from sessionsdb.messages.codec import decode
from sessionsdb.messages.json_text import parse
from sessionsdb.messages.rendering import render_text
from sessionsdb.operations import channel_sessions, entries, heads, state, tree
from sessionsdb.operations.entries import EntryPage
from sessionsdb.operations.heads import Head
from sessionsdb.types import TranscriptEntry
from sessionsdb.validation import MAX_INTEGER

__all__ = [
    "StaleSessionError",
    "append_event",
    "create_session",
    "delete_session",
    "list_sessions",
    "read_session",
]

try:
    from google.adk.errors._stale_session_error import StaleSessionError
except ImportError:  # a private module
    StaleSessionError = ValueError

_FIRST_PAGE: Final = 50
"""The events of the first page where a timestamp tells how many are wanted. Each next page has
twice as many."""


def create_session(
    connection: Connection, key: SessionPlace, changes: StateChanges, max_bytes: int
) -> StoredSession | None:
    """Create a session, or return ``None`` if it exists."""
    head = heads.create(connection, key.registration)
    if head is None:
        return None
    state.merge(connection, changes.updates(key), max_bytes=max_bytes)
    return StoredSession(head.revision, head.created_at.timestamp(), _state(connection, key), [])


def read_session(
    connection: Connection, key: SessionPlace, config: GetSessionConfig
) -> StoredSession | None:
    head = heads.read(connection, key.namespace, key.stored_id)
    if head is None:
        return None
    require_form(head, key.registration)
    found = _events(connection, key, config)
    newest = found[-1] if found else _newest(connection, key)
    updated = head.created_at.timestamp() if newest is None else _time_of(newest)
    events = [_event(entry) for entry in found]
    return StoredSession(head.revision, updated, _state(connection, key), events)


def _events(
    connection: Connection, key: SessionPlace, config: GetSessionConfig
) -> list[TranscriptEntry]:
    """Return the entries that a configuration asks for."""
    limit = MAX_INTEGER if config.num_recent_events is None else config.num_recent_events
    if config.after_timestamp is None:
        return entries.read_entries(connection, _page(key, limit)) if limit else []
    found: list[TranscriptEntry] = []
    for entry in _newest_first(connection, key):
        if len(found) >= limit or _time_of(entry) < config.after_timestamp:
            break
        found.append(entry)
    return found[::-1]


def _newest_first(connection: Connection, key: SessionPlace) -> Iterator[TranscriptEntry]:
    """Yield the entries from the newest one on, read in pages."""
    size, before = _FIRST_PAGE, None
    while page := entries.read_entries(connection, _page(key, size, before)):
        yield from reversed(page)
        size, before = size * 2, page[0].seq


def _newest(connection: Connection, key: SessionPlace) -> TranscriptEntry | None:
    return next(iter(entries.read_entries(connection, _page(key, 1))), None)


def _page(key: SessionPlace, limit: int, before: int | None = None) -> EntryPage:
    return EntryPage(key.namespace, key.stored_id, limit, before=before)


def _event(entry: TranscriptEntry) -> Event:
    if _is_of_inbox(entry):
        text = render_text(entry.message)
        if entry.sender is not None:
            text = attributed_text(text, entry.sender)
        content = types.Content(role="user", parts=[types.Part(text=text)])
        id = f"{entry.session_id}-{entry.seq}"
        return Event(id=id, author="user", content=content, timestamp=_time_of(entry))
    event = as_event(entry.message)
    if event is None:
        raise InvalidArgument(
            f"message {entry.seq} of session {entry.session_id} is no event of {FORM}; read the "
            "session with store or broker, or remove the message"
        )
    return event


def _is_of_inbox(entry: TranscriptEntry) -> bool:
    """Whether an entry is a message of the inbox, to an agent of the framework as a handler.

    Another agent can write a message in any form, also in that of an event of the user.
    """
    if entry.sent_at is None:
        return False
    return entry.sender is not None or as_event(entry.message) is None


def _time_of(entry: TranscriptEntry) -> float:
    if entry.sent_at is not None and _is_of_inbox(entry):
        return entry.sent_at.timestamp()
    return timestamp_of(entry.message)


def timestamp_of(message: dict[str, Any]) -> float:
    found = message.get("timestamp")
    return float(found) if isinstance(found, (int, float)) else 0.0


def _state(connection: Connection, key: SessionPlace) -> dict[str, Any]:
    """Return the state of a session, the user's and the app's in one, by prefixed key."""
    scopes = (key.session_scope, key.user_scope, key.app_scope)
    found = state.read_values(connection, key.namespace, scopes)
    own, user, app = (found[scope[1:3]] for scope in scopes)
    return own | _prefixed(State.USER_PREFIX, user) | _prefixed(State.APP_PREFIX, app)


def list_sessions(
    connection: Connection, namespace: str, app_name: str, user_id: str | None
) -> list[tuple[SessionPlace, StoredSession]]:
    """Return the sessions of an app, or of one of its users, without their events, in no order."""
    any_key = SessionPlace(namespace, app_name, user_id or "", "")
    peer = None if user_id is None else any_key.peer
    listed = channel_sessions.read_listed(connection, namespace, any_key.channel, peer)
    own = channel_sessions.read_states(connection, namespace, any_key.channel, peer)
    users = dict.fromkeys(one.peer for one in listed)
    shared = dict(zip(users, _shared_states(connection, any_key, list(users)), strict=True))
    # Most sessions have the same metadata.
    forms_of = {text: forms.form_in(text) for text in {one.metadata for one in listed}}
    beginnings = {user: ids.join(app_name, user, "") for user in users}
    found = []
    for one in listed:
        name = ids.last_name_after(one.id, beginnings[one.peer])
        # A fork of a session has another id, which the framework can't name.
        if name is None or forms_of[one.metadata] not in (FORM, None):
            continue
        if one.newest is None:
            updated = as_utc(one.created_at).timestamp()
        else:
            updated = timestamp_of(parse(one.newest))
        values = own.get(one.id, {}) | shared[one.peer]
        key = SessionPlace(namespace, app_name, one.peer, name)
        found.append((key, StoredSession(one.revision, updated, values, [])))
    return found


def _shared_states(
    connection: Connection, app: SessionPlace, users: list[str]
) -> list[dict[str, Any]]:
    """Return for each user the user's and the app's state in one, by prefixed key."""
    scopes = [app._replace(user_id=user).user_scope for user in users]
    found = state.read_values(connection, app.namespace, [*scopes, app.app_scope])
    of_app = _prefixed(State.APP_PREFIX, found[app.app_scope[1:3]])
    return [_prefixed(State.USER_PREFIX, found[scope[1:3]]) | of_app for scope in scopes]


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}


def delete_session(connection: Connection, key: SessionPlace) -> None:
    head = heads.read(connection, key.namespace, key.stored_id)
    if head is not None:
        require_form(head, key.registration)
        tree.delete_session(connection, key.namespace, key.stored_id, "detach")


def append_event(
    connection: Connection, key: SessionPlace, event: NewEvent, copy: SessionCopy, max_bytes: int
) -> str | None:
    """Store an event, and return the session's revision with it.

    ``None``: it stands there, and not as the one event that the copy lacks.
    """
    head = heads.lock(connection, key.namespace, key.stored_id)
    if head is None:
        raise SessionNotFoundError(f"Session {key.session_id} not found.")
    require_form(head, key.registration)
    name = event.key
    if name is not None:
        same = entries.find(connection, key.namespace, name, key.stored_id)
        if same is not None and same.message == decode(*event.message):
            return head.revision if _lacks_only(connection, key, same, copy) else None
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


def _lacks_only(
    connection: Connection, key: SessionPlace, event: TranscriptEntry, copy: SessionCopy
) -> bool:
    """Return whether a copy lacks the newest event and no other, as after a cancelled append."""
    *before, newest = entries.read_entries(connection, _page(key, 2))
    last_id = before[0].message.get("id") if before else None
    return newest.seq == event.seq and copy.last_event_id == last_id


def _is_stale(connection: Connection, key: SessionPlace, head: Head, copy: SessionCopy) -> bool:
    """Return whether the stored session is newer than a writer's copy.

    A copy without a revision was not made by this service: its newest event is compared then.
    """
    if copy.revision is not None:
        return copy.revision != head.revision
    newest = _newest(connection, key)
    if newest is None or timestamp_of(newest.message) <= copy.last_update_time:
        return False
    return newest.message.get("id") != copy.last_event_id
