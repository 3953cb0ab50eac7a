"""Records over a log of messages: the conversations of a store whose conversations share messages.

A record is a JSON object with a ``revision``, the ``head_id`` of its line, and ``branches``, the
ends of the lines that it left. It stands in the state of its session, beside the messages that this
conversation appended: see ``message_log.py``. It is replaced only if its revision is the expected
one, in the transaction that appends the messages.

A conversation may use messages of another session: it is a fork. Then that session has a reference
in its state, with the ids of the used messages, and the fork has the id of that session. A
conversation is deleted with all messages that no other one uses. If some are used, its session
stays without a record, and goes with the last conversation that uses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, delete, select, update

from sessionsdb.engine import functions
from sessionsdb.messages.json_text import dump, parse, parse_object
from sessionsdb.operations import registry, state, tree
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import chunks
from sessionsdb.operations.message_log import (
    NewEntry,
    Place,
    extras_of,
    find_places,
    named_parent,
)
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.state import StateUpdate, session_scope
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

RECORD: Final = "log.record"
"""The key of a record in the state of its session."""

_USES: Final = "log.uses"
"""The key of the ids of the sessions whose messages this one uses."""

_USED_BY: Final = "log.used_by:"
"""The beginning of the key of a reference. A digest of the session that uses the messages follows,
because an id may be longer than a key."""

_STATE_BYTES: Final = 2**30 - 1
"""References are written whatever the limit of the handle: otherwise a fork would lose its
beginning when its source is deleted."""


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


def _read_state(connection: Connection, namespace: str, session_id: str) -> dict[str, Any]:
    return state.read(connection, session_scope(namespace, session_id)).values


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
    values = {} if before is None else _read_state(connection, namespace, session_id)
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
    _add_references(connection, request, places, values, changes)
    _merge(connection, namespace, changes)
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


# ---- references --------------------------------------------------------------------------------


def _reference_key(session_id: str) -> str:
    return _USED_BY + hashlib.sha256(session_id.encode()).hexdigest()


def _add_references(
    connection: Connection,
    request: RecordWrite,
    places: dict[str, Place],
    values: dict[str, Any],
    changes: dict[str, dict[str, Any]],
) -> None:
    """Add the changes of state that keep the used messages of other sessions."""
    own = request.session_id
    used: dict[str, set[str]] = {}
    named = {
        request.record["head_id"],
        *request.record["branches"],
        *(entry.parent_id for entry in request.entries),
    }
    for id in named - {None}:
        place = places.get(str(id))
        if place is not None and place.session_id != own:
            used.setdefault(place.session_id, set()).add(str(id))
    if not used:
        return
    changes[own][_USES] = sorted({*values.get(_USES, ()), *used})
    key = _reference_key(own)
    for other, ids in used.items():
        known = _read_state(connection, request.namespace, other).get(key, {"ids": []})
        changes[other] = {key: {"id": own, "ids": sorted(ids.union(known["ids"]))}}


def copy_references(connection: Connection, namespace: str, source: str, copy: str) -> None:
    """Have the copy of a session keep the messages of others that it uses.

    ``copy`` has the state of ``source``. The references to ``source`` are dropped there: nobody
    uses messages of the copy. Does nothing for a session that has no part in a log.
    """
    rows = connection.execute(
        select(state_values.c.key, state_values.c.value).where(
            state_values.c.namespace == namespace,
            state_values.c.scope == "session",
            state_values.c.owner == session_scope(namespace, copy).owner,
            (state_values.c.key == _USES)
            | (functions.start_of(state_values.c.key, len(_USED_BY)) == _USED_BY),
        )
    ).all()
    if not rows:
        return
    found = {key: parse(value) for key, value in rows}
    uses = sorted(found.pop(_USES, ()))
    changes: dict[str, dict[str, Any]] = {copy: dict.fromkeys(found)}
    lock_sessions(connection, [(namespace, id) for id in uses])
    for other in uses:
        reference = _read_state(connection, namespace, other).get(_reference_key(source))
        if reference is not None:
            changes[other] = {_reference_key(copy): {**reference, "id": copy}}
    _merge(connection, namespace, changes)


def _merge(connection: Connection, namespace: str, changes: dict[str, dict[str, Any]]) -> None:
    updates = [
        StateUpdate(
            session_scope(namespace, session_id),
            session_id,
            {
                key: None if value is None else dump(value, noun="record")
                for key, value in values.items()
            },
        )
        for session_id, values in changes.items()
    ]
    state.merge(connection, updates, max_bytes=_STATE_BYTES)


# ---- deleting ----------------------------------------------------------------------------------


def delete_record(
    connection: Connection, namespace: str, session_id: str, expected_revision: str
) -> bool:
    """Delete a record, and all messages that no record uses any more.

    Return false if the stored record has another revision.
    """
    _lock_below(connection, namespace, session_id)
    record = read_record(connection, namespace, session_id)
    if record is None or record["revision"] != expected_revision:
        return False
    _merge(connection, namespace, {session_id: {RECORD: None}})
    _collect(connection, namespace, session_id)
    return True


def _lock_below(connection: Connection, namespace: str, session_id: str) -> None:
    """Lock a session, and all sessions whose messages it uses, also over others."""
    locked: set[str] = set()
    found = {session_id}
    while found:
        locked |= found
        keys = [(namespace, id) for id in sorted(locked)]
        lock_mailboxes(connection, keys)
        lock_sessions(connection, keys)
        # A session that is locked uses no more messages of others.
        used = [_read_state(connection, namespace, id).get(_USES, ()) for id in sorted(found)]
        found = {id for ids in used for id in ids} - locked


def _collect(connection: Connection, namespace: str, session_id: str) -> None:
    """Delete the messages of sessions without a record that no other session uses.

    Begins with one session, and goes on to those whose messages it used, as far as it is deleted.
    """
    left = [session_id]
    while left:
        id = left.pop()
        values = _read_state(connection, namespace, id)
        if RECORD in values or not registry.exists(connection, namespace, id):
            continue
        if kept := _used_ids(connection, namespace, id, values):
            _delete_others(connection, namespace, id, kept)
            continue
        tree.delete_session(connection, namespace, id, "detach")
        for used in values.get(_USES, ()):
            if registry.exists(connection, namespace, used):
                _merge(connection, namespace, {used: {_reference_key(id): None}})
                left.append(used)


def _used_ids(
    connection: Connection, namespace: str, session_id: str, values: dict[str, Any]
) -> set[str]:
    """Return the ids of a session's messages that other sessions use. ``values``: its state."""
    used: set[str] = set()
    for key, value in values.items():
        if not key.startswith(_USED_BY):
            continue
        # A session that was deleted without its store has left its references, and one that was
        # created anew under its id has none.
        if session_id in _read_state(connection, namespace, value["id"]).get(_USES, ()):
            used.update(value["ids"])
    return used


def _delete_others(
    connection: Connection, namespace: str, session_id: str, kept: Collection[str]
) -> None:
    """Delete the messages of a session that are on no line of the kept ones."""
    rows = connection.execute(
        select(messages.c.seq, messages.c.key, messages.c.extra)
        .where(messages.c.namespace == namespace, messages.c.session_id == session_id)
        .order_by(messages.c.seq)
    ).all()
    parents: dict[str, str | None] = {}
    last: str | None = None
    for _, key, extra in rows:
        if key is not None:
            named = named_parent(extra)
            parents[key] = last if named is None else named.parent_id
            last = key
    reached: set[str] = set()
    for id in kept:
        following: str | None = id
        while following in parents and following not in reached:
            assert following is not None
            reached.add(following)
            following = parents[following]
    others = [seq for seq, key, _ in rows if key not in reached]
    for chunk in chunks(others):
        connection.execute(
            delete(messages).where(
                messages.c.namespace == namespace,
                messages.c.session_id == session_id,
                messages.c.seq.in_(chunk),
            )
        )
    if others:
        dialect_of(connection).write_tail(
            connection,
            namespace,
            session_id,
            [],
            [],
            uuid4().hex,
            message_count=len(rows) - len(others),
            rewrites=1,
        )
