"""Records over a log of messages: the conversations of a store whose conversations share messages.

A record is a JSON object with a ``revision``, the ``head_id`` of its line, and ``branches``, the
ends of the lines that it left. It stands in the state of its session, beside the messages that this
conversation appended: see ``message_log.py``. It is replaced only if its revision is the expected
one, in the transaction that appends the messages.

A conversation may use messages of another session: it is a fork. See ``log_references.py``. A
conversation is deleted with all messages that no other one uses. If some are used, its session
stays without a record, and goes with the last conversation that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, select, update

from sessionsdb.engine import functions
from sessionsdb.messages.json_text import parse, parse_object
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.log_references import (
    RECORD,
    add_references,
    collect,
    lock_below,
    merge,
    read_state,
)
from sessionsdb.operations.message_log import NewEntry, Place, extras_of, find_places
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.row_locks import lock_sessions
from sessionsdb.operations.state import session_scope
from sessionsdb.operations.transcript_types import NO_ATTRIBUTES
from sessionsdb.schema import (
    CHANNEL_PREFIX,
    PEER_PREFIX,
    messages,
    sessions,
    state_scopes,
    state_values,
)
from sessionsdb.types import SessionDetails


class RecordWrite(NamedTuple):
    """A record and the messages that its line adds."""

    namespace: str
    session_id: str
    registration: Registration
    """For a session that does not exist yet. Of one that does, the peer is set."""
    check: Callable[[SessionDetails], None]
    """Raises an error for a session without a record that can't be used for this one."""
    record: dict[str, Any]
    expected_revision: str | None
    """``None``: there must be no record."""
    entries: Sequence[NewEntry]
    saved_at: datetime
    """The place of the record in the list of all records."""


# ---- reading -----------------------------------------------------------------------------------


def read_record(connection: Connection, namespace: str, session_id: str) -> dict[str, Any] | None:
    """Return the record of a session, or ``None``.

    Old messages may have been purged since. Then the record has no head, and none of these lines.
    """
    text = connection.execute(
        select(state_values.c.value).where(
            state_values.c.namespace == namespace,
            state_values.c.scope == "session",
            state_values.c.owner == session_scope(namespace, session_id).owner,
            state_values.c.key == RECORD,
        )
    ).scalar()
    if text is None:
        return None
    record = parse_object(text)
    ends = {record["head_id"], *record["branches"]} - {None}
    there = find_places(connection, namespace, ends, at_first=session_id)
    if record["head_id"] not in there:
        record["head_id"] = None
    record["branches"] = [end for end in record["branches"] if end in there]
    return record


def read_records(
    connection: Connection, namespace: str, channel: str, peer: str | None, limit: int | None
) -> list[tuple[str, dict[str, Any]]]:
    """Return session ids and their records, saved last first, equal times by id.

    Only those of a channel, and of a peer if it is given.
    """
    conditions: list[ColumnElement[bool]] = [
        sessions.c.namespace == namespace,
        sessions.c.ended_at.is_(None),
        functions.start_of(sessions.c.channel, CHANNEL_PREFIX) == channel[:CHANNEL_PREFIX],
        sessions.c.channel == channel,
    ]
    if peer is not None:
        conditions += [
            functions.start_of(sessions.c.peer, PEER_PREFIX) == peer[:PEER_PREFIX],
            sessions.c.peer == peer,
        ]
    statement = (
        select(sessions.c.id, state_values.c.value)
        .join(
            state_scopes,
            (state_scopes.c.namespace == sessions.c.namespace)
            & (state_scopes.c.session_id == sessions.c.id),
        )
        .join(
            state_values,
            (state_values.c.namespace == state_scopes.c.namespace)
            & (state_values.c.scope == state_scopes.c.scope)
            & (state_values.c.owner == state_scopes.c.owner)
            & (state_values.c.key == RECORD),
        )
        .where(*conditions)
        .order_by(sessions.c.last_active.desc(), sessions.c.id.desc())
        .limit(limit)
    )
    return [(id, parse(value)) for id, value in connection.execute(statement)]


# ---- writing -----------------------------------------------------------------------------------


def write_record(connection: Connection, request: RecordWrite) -> bool:
    """Store a record and its new messages, all or nothing.

    Return false, without a write, if the stored record has another revision, or if the head is no
    message of the namespace.
    """
    namespace, session_id = request.namespace, request.session_id
    places = _lock_used(connection, request)
    dialect = dialect_of(connection)
    before = dialect.lock_transcript(connection, namespace, session_id)
    values = {} if before is None else read_state(connection, namespace, session_id)
    stored = values.get(RECORD)
    head_id = request.record["head_id"]
    new_ids = {entry.id for entry in request.entries}
    if (stored and stored["revision"]) != request.expected_revision:
        return False
    if head_id is not None and head_id not in places.keys() | new_ids:
        return False
    if before is None:
        registry.create(connection, request.registration)
        # If another transaction has just created it, this looks at the record of that one.
        return write_record(connection, request)
    if stored is None:
        _take_over(connection, request)
    added = [entry for entry in request.entries if entry.id not in places]
    if added:
        extras = extras_of(added, _last_id(connection, namespace, session_id))
        dialect.write_tail(
            connection,
            namespace,
            session_id,
            [entry.message for entry in added],
            [
                NO_ATTRIBUTES._replace(key=entry.id, extra=extra)
                for entry, extra in zip(added, extras, strict=True)
            ],
            uuid4().hex,
            message_count=before.message_count + len(added),
            rewrites=0,
        )
    changes: dict[str, dict[str, Any]] = {session_id: {RECORD: request.record}}
    named = {head_id, *request.record["branches"], *(one.parent_id for one in request.entries)}
    used = [(id, places[id]) for id in named if id is not None and id in places]
    add_references(connection, namespace, session_id, used, values, changes)
    merge(connection, namespace, changes)
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == namespace, sessions.c.id == session_id)
        .values(peer=request.registration.peer, last_active=request.saved_at)
    )
    return True


def _take_over(connection: Connection, request: RecordWrite) -> None:
    """Check a session without a record, and add the metadata of the registration to its own."""
    details = registry.get(connection, request.namespace, request.session_id)
    request.check(details)
    metadata = details.metadata | dict(request.registration.metadata or {})
    if metadata != details.metadata:
        registry.change(connection, request.namespace, request.session_id, {"metadata": metadata})


def _lock_used(connection: Connection, request: RecordWrite) -> dict[str, Place]:
    """Lock the session and all sessions whose messages it names. Return the messages' places."""
    named = {request.record["head_id"], *request.record["branches"]}
    for entry in request.entries:
        named |= {entry.id, entry.parent_id}
    ids = sorted(id for id in named if id is not None)
    own = request.session_id
    locked: set[str] = set()
    while True:
        places = find_places(connection, request.namespace, ids, at_first=own)
        used = {own, *(place.session_id for place in places.values())}
        if used <= locked:
            return places
        locked |= used
        lock_sessions(connection, [(request.namespace, id) for id in sorted(locked)])


def _last_id(connection: Connection, namespace: str, session_id: str) -> str | None:
    return connection.execute(
        select(messages.c.key)
        .where(
            messages.c.namespace == namespace,
            messages.c.session_id == session_id,
            messages.c.key.is_not(None),
        )
        .order_by(messages.c.seq.desc())
        .limit(1)
    ).scalar()


# ---- deleting ----------------------------------------------------------------------------------


def delete_record(
    connection: Connection, namespace: str, session_id: str, expected_revision: str
) -> bool:
    """Delete a record, and all messages that no record uses any more.

    Return false if the stored record has another revision.
    """
    lock_below(connection, namespace, session_id)
    record = read_record(connection, namespace, session_id)
    if record is None or record["revision"] != expected_revision:
        return False
    merge(connection, namespace, {session_id: {RECORD: None}})
    collect(connection, namespace, session_id)
    return True
