"""``SessionStore``: the transcripts of the Claude Agent SDK in this database.

::

    from sessionsdb.adapters.claude_agent import SessionStore

    options = ClaudeAgentOptions(session_store=SessionStore("sqlite:///app.db"))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple, cast

from claude_agent_sdk import fold_session_summary
from claude_agent_sdk.types import (
    SessionKey,
    SessionListSubkeysKey,
    SessionStoreEntry,
    SessionStoreListEntry,
    SessionSummaryEntry,
)
from claude_agent_sdk.types import SessionStore as SessionStoreProtocol
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.adapters import forms, ids
from sessionsdb.adapters.framework_sessions import DELETED, lock_or_create, require_form
from sessionsdb.adapters.handles import Handles
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.codec import StoredMessage, encode_all
from sessionsdb.messages.json_text import dump
from sessionsdb.operations import channel_sessions, heads, registry, state, transcripts, tree
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.state import StateUpdate, session_scope
from sessionsdb.types import Children
from sessionsdb.validation import MAX_INTEGER

FORM: Final = "claude-agent"

_SUMMARY = "summary"
"""The key of the summary in the state of a session."""


class SessionStore(SessionStoreProtocol):
    """The transcripts of all projects of one namespace.

    ``db_or_url``: a ``SessionsDB``, an ``AsyncEngine`` or a URL.

    A main transcript is a session with the channel ``claude-agent``, the project key as its peer,
    and the id ``PROJECT/SESSION``. A slash inside of a name is written ``%2F``, a percent sign
    ``%25``. The transcript of a subagent is a child of that session, with the id
    ``PROJECT/SESSION/SUBPATH``. Where it comes first, its parent is made without messages, which is
    no session for the SDK yet.

    Each entry is one message, with its ``uuid`` as the key: an entry that is appended again is
    stored once. A batch and the summary of its session are committed in one transaction. The state
    of the session has the summary, under the key ``summary``.
    """

    def __init__(self, db_or_url: SessionsDB | AsyncEngine | str) -> None:
        self._handles = Handles(db_or_url)

    def stored_id(self, key: SessionKey) -> str:
        """Return the id under which ``broker``, ``store`` and the reports know a transcript."""
        return _Key.of("", key).stored_id

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Append a batch of entries. A session is created by its first entry."""
        if not entries:
            return
        db = await self._handles.current()
        messages = encode_all(entries, max_bytes=db.limits.message_bytes)
        batch = [
            _Entry(entry, message, _message_key(entry))
            for entry, message in zip(entries, messages, strict=True)
        ]
        operation = partial(_append, key=_Key.of(db.namespace, key), batch=batch)
        await open_database_of(db).write(operation, wakes=())

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """Return all entries in order, equal to the appended ones, or ``None``."""
        db = await self._handles.current()
        found = await open_database_of(db).read(partial(_load, key=_Key.of(db.namespace, key)))
        return cast("list[SessionStoreEntry] | None", found)

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """Return the main transcripts of a project, the newest change first."""
        return [
            {"session_id": one.session_id, "mtime": one.mtime}
            for one in await self._list(project_key)
        ]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """Return the summaries of the same transcripts, in the same order, with the same times."""
        return [
            {"session_id": one.session_id, "mtime": one.mtime, "data": one.summary}
            for one in await self._list(project_key)
            if one.summary is not None
        ]

    async def delete(self, key: SessionKey) -> None:
        """Delete a main transcript with its subagents, or the transcript of one subagent."""
        db = await self._handles.current()
        operation = partial(_delete, key=_Key.of(db.namespace, key))
        await open_database_of(db).write(operation, wakes=DELETED)

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """Return the subpaths of the subagents of a session, in order."""
        db = await self._handles.current()
        return await open_database_of(db).read(
            partial(_list_subkeys, key=_Key.of(db.namespace, cast("SessionKey", key)))
        )

    async def close(self) -> None:
        """Close the database, if this store opened it. The next use opens it again."""
        await self._handles.close()

    async def _list(self, project_key: str) -> list[_Listed]:
        db = await self._handles.current()
        return await open_database_of(db).read_snapshot(
            partial(_list, namespace=db.namespace, project_key=project_key)
        )


# ---- values --------------------------------------------------------------------------------------


class _Key(NamedTuple):
    """The key of a transcript, and its place in the database."""

    namespace: str
    project_key: str
    session_id: str
    subpath: str | None

    @classmethod
    def of(cls, namespace: str, key: SessionKey) -> _Key:
        return cls(namespace, key["project_key"], key["session_id"], key.get("subpath") or None)

    @property
    def main_id(self) -> str:
        return validation.session_id(ids.join(self.project_key, self.session_id))

    @property
    def stored_id(self) -> str:
        if self.subpath is None:
            return self.main_id
        return validation.session_id(f"{self.main_id}/{self.subpath}")

    @property
    def main(self) -> Registration:
        """The session of the main transcript."""
        mark = forms.mark(FORM)
        return Registration(self.namespace, self.main_id, FORM, self.project_key, metadata=mark)

    @property
    def registration(self) -> Registration:
        """The session of this transcript."""
        if self.subpath is None:
            return self.main
        return self.main._replace(session_id=self.stored_id, peer=self.main_id, parent=self.main_id)


class _Entry(NamedTuple):
    """An entry to append."""

    given: SessionStoreEntry
    message: StoredMessage
    key: str | None


class _Listed(NamedTuple):
    """A main transcript of a list."""

    session_id: str
    mtime: int
    """The time of its last change, in milliseconds since 1970, by the clock of the database."""
    summary: dict[str, Any] | None


def _message_key(entry: SessionStoreEntry) -> str | None:
    """Return the key of an entry's message. A ``uuid`` that is no text for an index is none."""
    try:
        return validation.message_key(entry.get("uuid"))
    except InvalidArgument:
        return None


# ---- operations ----------------------------------------------------------------------------------


def _append(connection: Connection, key: _Key, batch: Sequence[_Entry]) -> None:
    if key.subpath is not None and not registry.exists(connection, key.namespace, key.stored_id):
        heads.create(connection, key.main)  # a subagent may come before the main transcript
    head = lock_or_create(connection, key.registration)
    new = _without_repeated(connection, key, batch)
    if not new:
        return
    heads.append(
        connection,
        key.namespace,
        head,
        [entry.message for entry in new],
        [entry.key for entry in new],
    )
    if key.subpath is None:
        _fold(connection, key, new)


def _without_repeated(connection: Connection, key: _Key, batch: Sequence[_Entry]) -> list[_Entry]:
    """Return the entries whose keys neither stand in the transcript nor come twice in the batch."""
    keys = [entry.key for entry in batch if entry.key is not None]
    seen = heads.taken_keys(connection, key.namespace, key.stored_id, keys)
    new: list[_Entry] = []
    for entry in batch:
        if entry.key is None or entry.key not in seen:
            new.append(entry)
            seen |= {entry.key} if entry.key is not None else set()
    return new


def _fold(connection: Connection, key: _Key, new: Sequence[_Entry]) -> None:
    """Fold new entries into the summary. The session is locked, so no other batch does so now."""
    scope = session_scope(key.namespace, key.main_id)
    stored = state.read(connection, scope).values.get(_SUMMARY)
    before: SessionSummaryEntry | None = None
    if stored is not None:
        before = {"session_id": key.session_id, "mtime": 0, "data": stored}
    given: SessionKey = {"project_key": key.project_key, "session_id": key.session_id}
    folded = fold_session_summary(before, given, [entry.given for entry in new])
    changes = {_SUMMARY: dump(folded["data"], noun="summary")}
    # The summary quotes entries, whose size was checked.
    state.merge(connection, [StateUpdate(scope, key.main_id, dict(changes))], max_bytes=MAX_INTEGER)


def _load(connection: Connection, key: _Key) -> list[dict[str, Any]] | None:
    head = heads.read(connection, key.namespace, key.stored_id)
    if head is None or head.message_count == 0:  # none, or made as the parent of a subagent
        return None
    require_form(head, key.registration)
    return transcripts.load(connection, key.namespace, key.stored_id)


def _list(connection: Connection, namespace: str, project_key: str) -> list[_Listed]:
    found = [
        head
        for head in channel_sessions.read_heads(connection, namespace, FORM, project_key)
        if head.parent_id is None
        and head.message_count > 0
        and forms.form_of(head) in (FORM, None)
        and head.id == ids.join(project_key, ids.last_name(head.id))
    ]
    found.sort(key=lambda head: (head.updated_at, head.id), reverse=True)
    states = channel_sessions.read_states(connection, namespace, FORM, project_key)
    return [
        _Listed(
            ids.last_name(head.id),
            int(head.updated_at.timestamp() * 1000),
            states.get(head.id, {}).get(_SUMMARY),
        )
        for head in found
    ]


def _delete(connection: Connection, key: _Key) -> None:
    head = heads.read(connection, key.namespace, key.stored_id)
    if head is not None:
        require_form(head, key.registration)
        children: Children = "cascade" if key.subpath is None else "detach"
        tree.delete_session(connection, key.namespace, key.stored_id, children)


def _list_subkeys(connection: Connection, key: _Key) -> list[str]:
    prefix = f"{key.main_id}/"
    return sorted(
        head.id.removeprefix(prefix)
        for head in heads.of_parent(connection, key.namespace, key.main_id)
        if head.id.startswith(prefix) and head.message_count > 0
    )
