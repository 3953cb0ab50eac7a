"""Edits: remove the end of a transcript, append to it, and replace one message.

An edit costs as much as it reads and changes, whatever the length of the transcript. It locks the
session first, so nothing is appended between its checks and its writes. A change that removes or
replaces a message counts as a rewrite: a turn that runs over the transcript does not commit then.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, select, update

from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InvalidArgument, UnknownSession, VersionConflict
from sessionsdb.messages.codec import Message, StoredMessage, decode
from sessionsdb.messages.extra import INTERRUPTED
from sessionsdb.messages.state_values import Changes
from sessionsdb.operations import registry, state
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import chunks
from sessionsdb.operations.saving import RemovedMessage, carried_attributes, removed_message
from sessionsdb.operations.state import StateUpdate
from sessionsdb.operations.transcript_types import (
    ATTRIBUTE_COLUMNS,
    NO_ATTRIBUTES,
    Attributes,
    TranscriptState,
)
from sessionsdb.schema import messages
from sessionsdb.types import Edited, Limits, StateScope


class EditRequest(NamedTuple):
    """A change of one transcript: ``Edit`` with its arguments checked."""

    namespace: str
    session_id: str
    append: Sequence[StoredMessage] = ()
    keys: Sequence[str | None] = ()
    """One for each appended message."""
    keep_through: int | None = None
    expected_version: int | None = None
    expected_tail: Sequence[int] | None = None
    metadata: dict[str, Any] | None = None
    state: Sequence[tuple[StateScope, Changes]] = ()
    create: bool = False
    in_own_turn: bool = False
    """Whether the caller is the handler of a turn of this session. It may only append then."""


class EditResult(NamedTuple):
    """The result of an edit, and the rest of its work for the same transaction."""

    edited: Edited
    state: list[StateUpdate]
    """Changes of the state, for ``state.merge``. Its rows are locked behind all sessions."""


class _Removed(NamedTuple):
    """Messages behind the last one that is kept."""

    messages: list[Message]
    stored: list[RemovedMessage]
    """The same messages as they stood, with the values beside them."""

    @property
    def keys(self) -> set[str]:
        return {one.attributes.key for one in self.stored if one.attributes.key is not None}


_NEWEST_SEQS = Statement("""
SELECT seq FROM messages
WHERE namespace = :namespace AND session_id = :session_id
ORDER BY seq DESC LIMIT :limit
""")

# A subselect finds the first one. SQLite's DELETE has no LIMIT.
_DELETE_NEWEST = Statement("""
DELETE FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq >= (
    SELECT pg_catalog.min(newest.seq) FROM (
        SELECT m.seq FROM messages AS m
        WHERE m.namespace = :namespace AND m.session_id = :session_id
        ORDER BY m.seq DESC LIMIT :limit
    ) AS newest
)
RETURNING seq, role, content, payload
""")

DELETE_BEHIND = Statement("""
DELETE FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :keep_through
""")

BEHIND = Statement(f"""
SELECT role, content, payload, {ATTRIBUTE_COLUMNS} FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :keep_through
ORDER BY seq
""")

_KEYS_BEHIND = Statement("""
SELECT key FROM messages
WHERE namespace = :namespace AND session_id = :session_id AND seq > :keep_through
ORDER BY seq LIMIT :limit
""")


# ---- the verbs ---------------------------------------------------------------------------------


def edit(connection: Connection, request: EditRequest, limits: Limits) -> Edited:
    """Change a transcript, its session's metadata and state, all of it or nothing.

    Raises ``UnknownSession``, ``VersionConflict`` and ``InvalidArgument``.
    """
    edited, updates = edit_transcript(connection, request)
    if updates:
        state.merge(connection, updates, max_bytes=limits.state_bytes)
    return edited


def edit_transcript(connection: Connection, request: EditRequest) -> EditResult:
    """Make an edit, except for its changes of the state, which are returned.

    Raises ``UnknownSession``, ``VersionConflict`` and ``InvalidArgument``.
    """
    if _only_appends(request):
        edited = _append_only(connection, request)
        if edited is not None:
            return EditResult(edited, _finish(connection, request))
    before = _lock(connection, request)
    standing = _seqs_of_keys(connection, request)
    if _stands_already(connection, request, standing):
        seqs = [standing[str(key)] for key in request.keys]
        return EditResult(_edited(before.version, seqs, []), [])
    _check_expectations(connection, request, before)
    removed = _remove(connection, request)
    kept = {key: seq for key, seq in standing.items() if key not in removed.keys}
    added = [index for index, key in enumerate(request.keys) if key not in kept]
    version, base = _write(connection, request, before, removed.stored, added)
    new = dict(zip(added, range(base + 1, base + len(added) + 1), strict=True))
    appended = [
        new[index] if index in new else kept[str(key)] for index, key in enumerate(request.keys)
    ]
    return EditResult(_edited(version, appended, removed.messages), _finish(connection, request))


def pop(connection: Connection, request: EditRequest, *, count: int) -> list[Message]:
    """Remove the newest ``count`` messages, and return them, newest last."""
    before = _lock(connection, request)
    _check_expectations(connection, request, before)
    rows = _DELETE_NEWEST.rows(
        connection,
        {"namespace": request.namespace, "session_id": request.session_id, "limit": count},
    )
    if not rows:
        return []
    _refuse_in_own_turn(request)  # the deletion is rolled back then
    _advance(connection, request, [], [], before.message_count - len(rows))
    rows = sorted(rows, key=itemgetter(0))
    return [decode(role, content, payload) for _, role, content, payload in rows]


def replace(connection: Connection, request: EditRequest, seq: int, message: StoredMessage) -> int:
    """Replace the message at ``seq``, and return the version of the transcript.

    The message keeps its place and the values that stand beside it. A reply that was stopped is
    then whole, and loses that mark. An equal message changes nothing.
    """
    before = _lock(connection, request)
    _check_expectations(connection, request, before)
    at_seq = (
        messages.c.namespace == request.namespace,
        messages.c.session_id == request.session_id,
        messages.c.seq == seq,
    )
    row = connection.execute(
        select(messages.c.role, messages.c.content, messages.c.payload, messages.c.extra).where(
            *at_seq
        )
    ).one_or_none()
    if row is None:
        raise InvalidArgument(f"session {request.session_id} has no message with seq {seq}")
    *present, extra = row
    if decode(*present) == decode(*message) and present[2] == message.payload:
        return before.version
    _refuse_in_own_turn(request)
    values: dict[str, Any] = message._asdict()
    if extra == INTERRUPTED:
        values["extra"] = None
    connection.execute(update(messages).where(*at_seq).values(**values))
    return _advance(connection, request, [], [], before.message_count)[0]


# ---- the steps of an edit ----------------------------------------------------------------------


def _only_appends(request: EditRequest) -> bool:
    """Return whether an edit appends messages, and needs to know nothing of those that stand."""
    return (
        bool(request.append)
        and request.keep_through is None
        and request.expected_version is None
        and request.expected_tail is None
        and not any(request.keys)
    )


def _append_only(connection: Connection, request: EditRequest) -> Edited | None:
    """Append without a look before: one statement. ``None`` for an unknown session."""
    count = len(request.append)
    written = dialect_of(connection).write_tail(
        connection,
        request.namespace,
        request.session_id,
        request.append,
        [NO_ATTRIBUTES] * count,
        uuid4().hex,
        message_count=None,
        rewrites=0,
    )
    if written is None:
        return None
    version, base = written
    return _edited(version, list(range(base + 1, base + count + 1)), [])


def _lock(connection: Connection, request: EditRequest) -> TranscriptState:
    """Lock the session, which may be created first. Raises ``UnknownSession`` and
    ``VersionConflict``."""
    dialect = dialect_of(connection)
    key = (request.namespace, request.session_id)
    found = dialect.lock_transcript(connection, *key)
    if found is not None:
        return found
    if not request.create:
        raise UnknownSession(request.session_id)
    if request.expected_version:
        raise VersionConflict(request.session_id, request.expected_version, 0)
    locked, created = registry.lock_or_create(
        connection, *key, dialect.lock_transcript, writes=bool(request.append)
    )
    # Version 0 means that there is no session. That was true until now.
    return locked._replace(is_new=created)


def _seqs_of_keys(connection: Connection, request: EditRequest) -> dict[str, int]:
    """Return the ``seq`` of each key of the request that the session has already."""
    seqs: dict[str, int] = {}
    for chunk in chunks([key for key in request.keys if key is not None]):
        rows = connection.execute(
            select(messages.c.key, messages.c.seq).where(
                messages.c.namespace == request.namespace,
                messages.c.key.in_(chunk),
                messages.c.session_id == request.session_id,
            )
        )
        seqs |= {row.key: row.seq for row in rows}
    return seqs


def _stands_already(connection: Connection, request: EditRequest, standing: dict[str, int]) -> bool:
    """Return whether an earlier try of the same edit was committed.

    All its messages have keys, and stand directly behind ``keep_through``.
    """
    if not request.keys or any(key not in standing for key in request.keys):
        return False
    if request.keep_through is None:
        return True
    rows = _KEYS_BEHIND.rows(
        connection,
        {
            "namespace": request.namespace,
            "session_id": request.session_id,
            "keep_through": request.keep_through,
            "limit": len(request.keys),
        },
    )
    return [key for (key,) in rows] == list(request.keys)


def _check_expectations(
    connection: Connection, request: EditRequest, before: TranscriptState
) -> None:
    expected, tail = request.expected_version, request.expected_tail
    version = 0 if before.is_new else before.version
    if expected is not None and expected != version:
        raise VersionConflict(request.session_id, expected, version)
    if tail is not None:
        present = _newest_seqs(connection, request, max(len(tail), 1))
        if present != list(tail):
            raise VersionConflict.of_tail(request.session_id, version, present)


def _newest_seqs(connection: Connection, request: EditRequest, count: int) -> list[int]:
    """Return the ``seq``s of the newest messages, newest last."""
    rows = _NEWEST_SEQS.rows(
        connection,
        {"namespace": request.namespace, "session_id": request.session_id, "limit": count},
    )
    return [seq for (seq,) in rows][::-1]


def _remove(connection: Connection, request: EditRequest) -> _Removed:
    if request.keep_through is None:
        return _Removed([], [])
    rows = BEHIND.rows(
        connection,
        {
            "namespace": request.namespace,
            "session_id": request.session_id,
            "keep_through": request.keep_through,
        },
    )
    if rows:
        _refuse_in_own_turn(request)
        _delete_behind(connection, request, request.keep_through)
    return _Removed(
        [decode(role, content, payload) for role, content, payload, *_ in rows],
        [
            removed_message((role, content, payload), columns)
            for role, content, payload, *columns in rows
        ],
    )


def _delete_behind(connection: Connection, request: EditRequest, keep_through: int) -> None:
    DELETE_BEHIND.rows(
        connection,
        {
            "namespace": request.namespace,
            "session_id": request.session_id,
            "keep_through": keep_through,
        },
    )


def _refuse_in_own_turn(request: EditRequest) -> None:
    if request.in_own_turn:
        raise InvalidArgument(
            f"a handler can't remove or replace messages of its own session {request.session_id}: "
            "the turn would not commit; use turn.edit, which changes them with the commit"
        )


def _write(
    connection: Connection,
    request: EditRequest,
    before: TranscriptState,
    removed: Sequence[RemovedMessage],
    added: Sequence[int],
) -> tuple[int, int]:
    """Append the messages with these indices, and return the version and the ``seq`` before.

    A message that equals a removed one keeps the values that stood beside it. Its key is free
    again, unless the request gives the same key.
    """
    if not removed and not added:
        return before.version, 0
    appended = [request.append[index] for index in added]
    return _advance(
        connection,
        request,
        appended,
        [
            beside._replace(key=request.keys[index])
            for beside, index in zip(carried_attributes(removed, appended), added, strict=True)
        ],
        before.message_count - len(removed) + len(added),
        rewrites=1 if removed else 0,
    )


def _advance(
    connection: Connection,
    request: EditRequest,
    added: Sequence[StoredMessage],
    attributes: Sequence[Attributes],
    message_count: int,
    *,
    rewrites: int = 1,
) -> tuple[int, int]:
    written = dialect_of(connection).write_tail(
        connection,
        request.namespace,
        request.session_id,
        added,
        attributes,
        uuid4().hex,
        message_count=message_count,
        rewrites=rewrites,
    )
    assert written is not None  # the session is locked
    return written


def _finish(connection: Connection, request: EditRequest) -> list[StateUpdate]:
    """Set the metadata, and return the changes of the state. The session is locked by now."""
    namespace, session_id = request.namespace, request.session_id
    if request.metadata is not None:
        registry.set_columns(connection, namespace, session_id, {"metadata": request.metadata})
    return [
        StateUpdate(
            state.scope_of_locked(connection, namespace, session_id, scope), session_id, changes
        )
        for scope, changes in request.state
    ]


def _edited(version: int, appended: list[int], removed: list[Message]) -> Edited:
    return Edited.from_fields(version=version, appended=appended, removed=removed)
