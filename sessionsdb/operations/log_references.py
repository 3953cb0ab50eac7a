"""References between the conversations of a log: which session uses messages of which.

A conversation that uses messages of another session has the id of that session in its state. That
session has a reference in its state, with the ids of the used messages. So a session is deleted
with all messages that no other one uses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Connection, delete, select

from sessionsdb.engine import functions
from sessionsdb.messages.json_text import dump, parse
from sessionsdb.operations import registry, state, tree
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import chunks
from sessionsdb.operations.message_log import Place, named_parent
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.state import StateUpdate, session_scope
from sessionsdb.schema import messages, state_values

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


def read_state(connection: Connection, namespace: str, session_id: str) -> dict[str, Any]:
    """Return the state of a session: the record, the references, and what others wrote."""
    return state.read(connection, session_scope(namespace, session_id)).values


def merge(connection: Connection, namespace: str, changes: dict[str, dict[str, Any]]) -> None:
    """Write keys of the states of locked sessions. ``None`` removes a key."""
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


def _reference_key(session_id: str) -> str:
    return _USED_BY + hashlib.sha256(session_id.encode()).hexdigest()


def add_references(
    connection: Connection,
    namespace: str,
    own: str,
    places: Collection[tuple[str, Place]],
    values: dict[str, Any],
    changes: dict[str, dict[str, Any]],
) -> None:
    """Add the changes of state by which a session keeps messages of others.

    ``places``: the ids of the messages that the session ``own`` names, with their places.
    ``values``: its state.
    """
    used: dict[str, set[str]] = {}
    for id, place in places:
        if place.session_id != own:
            used.setdefault(place.session_id, set()).add(id)
    if not used:
        return
    changes[own][_USES] = sorted({*values.get(_USES, ()), *used})
    key = _reference_key(own)
    for other, ids in used.items():
        known = read_state(connection, namespace, other).get(key, {"ids": []})
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
        reference = read_state(connection, namespace, other).get(_reference_key(source))
        if reference is not None:
            changes[other] = {_reference_key(copy): {**reference, "id": copy}}
    merge(connection, namespace, changes)


def lock_below(connection: Connection, namespace: str, session_id: str) -> None:
    """Lock a session, and all sessions whose messages it uses, also over others."""
    locked: set[str] = set()
    found = {session_id}
    while found:
        locked |= found
        keys = [(namespace, id) for id in sorted(locked)]
        lock_mailboxes(connection, keys)
        lock_sessions(connection, keys)
        # A session that is locked uses no more messages of others.
        used = [read_state(connection, namespace, id).get(_USES, ()) for id in sorted(found)]
        found = {id for ids in used for id in ids} - locked


def collect(connection: Connection, namespace: str, session_id: str) -> None:
    """Delete the messages of sessions without a record that no other session uses.

    Begins with one session, and goes on to those whose messages it used, as far as it is deleted.
    """
    left = [session_id]
    while left:
        id = left.pop()
        values = read_state(connection, namespace, id)
        if RECORD in values or not registry.exists(connection, namespace, id):
            continue
        if kept := _used_ids(connection, namespace, id, values):
            _delete_others(connection, namespace, id, kept)
            continue
        tree.delete_session(connection, namespace, id, "detach")
        for used in values.get(_USES, ()):
            if registry.exists(connection, namespace, used):
                merge(connection, namespace, {used: {_reference_key(id): None}})
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
        if session_id in read_state(connection, namespace, value["id"]).get(_USES, ()):
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
