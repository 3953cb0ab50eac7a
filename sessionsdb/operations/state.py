"""State: JSON values by key, beside the transcripts, in one of three scopes.

A scope has one row of ``state_scopes``, and each key one row of ``state_values``. A write changes
the rows of the keys that it names, so writers of different keys lose nothing. Each write locks the
row of its scope. It locks sessions before, and scopes in the order of their keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from sessionsdb.engine import clock
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InvalidArgument, UnknownSession, VersionConflict
from sessionsdb.messages.state_values import Changes, decode_value, size_of
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import chunks
from sessionsdb.schema import sessions, state_scopes, state_values
from sessionsdb.types import State, StateScope

OWNER_BYTES = 1_024
"""The maximum of an owner. It is in an entry of an index with its namespace, of at most 256 bytes,
and a key, of at most 1,024. PostgreSQL limits an entry to 2,704 bytes."""

_DIGEST = "sha256:"


class ScopeKey(NamedTuple):
    """One scope: its key in the tables, and its owner."""

    namespace: str
    scope: StateScope
    owner: str
    """The id of the session or a digest of it, a digest of channel and peer, or an empty text."""
    session_id: str | None = None
    channel: str | None = None
    peer: str | None = None


class StateUpdate(NamedTuple):
    """Changes of one scope."""

    key: ScopeKey
    session_id: str
    """The session that asks, for errors."""
    changes: Changes
    expected_version: int | None = None


# ---- scopes ------------------------------------------------------------------------------------


def scope_of(
    connection: Connection, namespace: str, session_id: str, scope: StateScope
) -> ScopeKey:
    """Return the scope that a session belongs to. Raises ``UnknownSession``.

    The scope ``peer`` is that of the channel and peer of the root of the session's tree.
    """
    if scope != "peer":
        registry.require(connection, namespace, session_id)
    return scope_of_locked(connection, namespace, session_id, scope)


def scope_of_locked(
    connection: Connection, namespace: str, session_id: str, scope: StateScope
) -> ScopeKey:
    """Return the scope that a session belongs to, which is locked and so exists."""
    if scope == "session":
        return session_scope(namespace, session_id)
    if scope == "namespace":
        return ScopeKey(namespace, scope, "")
    root = sessions.alias("root")
    row = connection.execute(
        select(root.c.channel, root.c.peer)
        .select_from(sessions)
        .join(
            root,
            and_(
                root.c.namespace == sessions.c.namespace,
                root.c.id == func.coalesce(sessions.c.root_id, sessions.c.id),
            ),
        )
        .where(sessions.c.namespace == namespace, sessions.c.id == session_id)
    ).one_or_none()
    if row is None:
        raise UnknownSession(session_id)
    return peer_scope(namespace, row.channel, row.peer)


def session_scope(namespace: str, session_id: str) -> ScopeKey:
    """Return the scope of one session."""
    fits = len(session_id.encode()) <= OWNER_BYTES and not session_id.startswith(_DIGEST)
    owner = session_id if fits else _digest(session_id)
    return ScopeKey(namespace, "session", owner, session_id)


def peer_scope(namespace: str, channel: str, peer: str) -> ScopeKey:
    """Return the scope of a channel and peer."""
    return ScopeKey(namespace, "peer", _digest(json.dumps([channel, peer])), None, channel, peer)


def _digest(text: str) -> str:
    return _DIGEST + hashlib.sha256(text.encode()).hexdigest()


# ---- reading -----------------------------------------------------------------------------------

# One statement, so that the values are those of the version.
_READ = Statement("""
SELECT s.version, v.key, v.value
FROM state_scopes AS s
LEFT JOIN state_values AS v
    ON v.namespace = s.namespace AND v.scope = s.scope AND v.owner = s.owner
WHERE s.namespace = :namespace AND s.scope = :scope AND s.owner = :owner
ORDER BY v.key
""")


def read(connection: Connection, key: ScopeKey) -> State:
    """Return the state of a scope, by key. A scope that was never written to is empty."""
    rows = _READ.rows(
        connection, {"namespace": key.namespace, "scope": key.scope, "owner": key.owner}
    )
    return State.from_fields(
        values={name: decode_value(value) for _, name, value in rows if name is not None},
        version=rows[0][0] if rows else 0,
    )


_READ_VALUES = Statement("""
SELECT scope, owner, key, value FROM state_values
WHERE namespace = :namespace AND (
    (scope = :scope_a AND owner = :owner_a)
    OR (scope = :scope_b AND owner = :owner_b)
    OR (scope = :scope_c AND owner = :owner_c)
)
""")


def read_values(
    connection: Connection, namespace: str, keys: Sequence[ScopeKey]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the values of many scopes of a namespace, by scope and owner, in few statements."""
    found: dict[tuple[str, str], dict[str, Any]] = {key[1:3]: {} for key in keys}
    for scope, owner, name, text in _value_rows(connection, namespace, list(found)):
        found[scope, owner][name] = decode_value(text)
    return found


def _value_rows(
    connection: Connection, namespace: str, scopes: list[tuple[str, str]]
) -> Iterator[Sequence[Any]]:
    if not scopes:
        return
    if len(scopes) <= 3:
        a, b, c = (*scopes, scopes[-1], scopes[-1])[:3]
        parameters = {"namespace": namespace, "scope_a": a[0], "owner_a": a[1]}
        parameters |= {"scope_b": b[0], "owner_b": b[1], "scope_c": c[0], "owner_c": c[1]}
        yield from _READ_VALUES.rows(connection, parameters)
        return
    columns = (state_values.c.scope, state_values.c.owner, state_values.c.key, state_values.c.value)
    for scope in sorted({scope for scope, _ in scopes}):
        owners = [owner for other, owner in scopes if other == scope]
        for chunk in chunks(owners):
            yield from connection.execute(
                select(*columns).where(
                    state_values.c.namespace == namespace,
                    state_values.c.scope == scope,
                    state_values.c.owner.in_(chunk),
                )
            )


def read_of_session(
    connection: Connection, namespace: str, session_id: str, scope: StateScope
) -> tuple[ScopeKey, State]:
    """Return the scope that a session belongs to, and its state. Raises ``UnknownSession``."""
    key = scope_of(connection, namespace, session_id, scope)
    return key, read(connection, key)


# ---- writing -----------------------------------------------------------------------------------

_ADD_SCOPE = Statement("""
INSERT INTO state_scopes (namespace, scope, owner, session_id, channel, peer, updated_at)
VALUES (:namespace, :scope, :owner, :session_id, :channel, :peer, :now)
ON CONFLICT (namespace, scope, owner) DO NOTHING
""")


_IN_SCOPE = "namespace = :namespace AND scope = :scope AND owner = :owner"

_READ_SCOPE = Statement(f"SELECT version, bytes FROM state_scopes WHERE {_IN_SCOPE}")

_LOCK_SCOPE = Statement(f"""
SELECT version, bytes FROM state_scopes WHERE {_IN_SCOPE} FOR NO KEY UPDATE
""")

# Most updates name one key. With expressions of SQLAlchemy these statements took 0.4 of 1.2 ms of
# an edit that appends two messages and sets one value.
_READ_VALUE = Statement(f"SELECT key, value FROM state_values WHERE {_IN_SCOPE} AND key = :key")

# Of a scope that is locked already, so the value is the newest.
_READ_FOR_WRITE = Statement("""
SELECT s.version, s.bytes, v.value
FROM state_scopes AS s
LEFT JOIN state_values AS v
    ON v.namespace = s.namespace AND v.scope = s.scope AND v.owner = s.owner AND v.key = :key
WHERE s.namespace = :namespace AND s.scope = :scope AND s.owner = :owner
""")

_SET_VALUE = Statement("""
INSERT INTO state_values (namespace, scope, owner, key, value)
VALUES (:namespace, :scope, :owner, :key, :value)
ON CONFLICT (namespace, scope, owner, key) DO UPDATE SET value = excluded.value
""")


def update_state(
    connection: Connection,
    namespace: str,
    session_id: str,
    scope: StateScope,
    changes: Changes,
    *,
    expected_version: int | None,
    max_bytes: int,
) -> State:
    """Merge changes into a scope, and return its state.

    Raises ``UnknownSession``, ``VersionConflict``, and ``InvalidArgument`` for a state of more than
    ``max_bytes``.
    """
    if scope == "session":
        registry.require_locked(connection, namespace, session_id)
        key = session_scope(namespace, session_id)
    else:
        key = scope_of(connection, namespace, session_id, scope)
    merge(
        connection, [StateUpdate(key, session_id, changes, expected_version)], max_bytes=max_bytes
    )
    return read(connection, key)


def merge(connection: Connection, updates: Sequence[StateUpdate], *, max_bytes: int) -> None:
    """Merge changes into scopes, at most one update for each.

    The caller has locked the session of each scope ``session``, and locks no other rows behind
    this. Raises ``VersionConflict``, and ``InvalidArgument`` for a state of more than
    ``max_bytes``.
    """
    for one in sorted(updates, key=lambda update: update.key[:3]):
        _merge(connection, one, max_bytes)


def _merge(connection: Connection, one: StateUpdate, max_bytes: int) -> None:
    if len(one.changes) == 1 and _is_locked(connection, one.key):
        [(name, text)] = one.changes.items()
        if text is not None:
            _set_value(connection, one, name, text, max_bytes)
            return
    version, size = _lock_scope(connection, one)
    _check_version(one, version)
    before = _read_values(connection, one.key, one.changes)
    changed = {name: text for name, text in one.changes.items() if before.get(name) != text}
    if not changed:
        return
    for name, text in changed.items():
        size -= _size(name, before.get(name))
        size += _size(name, text)
    _check_size(one, size, max_bytes)
    _write_values(connection, one.key, changed)
    connection.execute(
        update(state_scopes)
        .where(*_is_scope(one.key))
        .values(version=version + 1, bytes=size, updated_at=clock.now(connection))
    )


def _is_locked(connection: Connection, key: ScopeKey) -> bool:
    """Return whether no other transaction can change a scope now.

    The session of a scope ``session`` is locked. On SQLite there is one writer.
    """
    return key.scope == "session" or not dialect_of(connection).has_row_locks


def _set_value(
    connection: Connection, one: StateUpdate, name: str, text: str, max_bytes: int
) -> None:
    """Set one value of a scope that is locked: a statement that reads and one that writes."""
    row = _READ_FOR_WRITE.row(connection, {**_place(one.key), "key": name})
    version, size, before = (0, 0, None) if row is None else row
    _check_version(one, version)
    if text == before:
        return
    size += _size(name, text) - _size(name, before)
    _check_size(one, size, max_bytes)
    dialect_of(connection).write_state_value(
        connection, one.key._asdict(), name, text, version + 1, size
    )


def _check_version(one: StateUpdate, version: int) -> None:
    if one.expected_version is not None and one.expected_version != version:
        raise VersionConflict(one.session_id, one.expected_version, version, scope=one.key.scope)


def _check_size(one: StateUpdate, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise InvalidArgument(
            f"the {one.key.scope} state of session {one.session_id} would be {size} bytes, the "
            f"limit is {max_bytes}; remove keys, or raise Limits.state_bytes"
        )


def _lock_scope(connection: Connection, one: StateUpdate) -> tuple[int, int]:
    """Lock the row of a scope, and return its version and its size."""
    lock = _LOCK_SCOPE if dialect_of(connection).has_row_locks else _READ_SCOPE
    place = _place(one.key)
    row = lock.row(connection, place)
    if row is None:
        _ADD_SCOPE.rows(
            connection,
            {
                **one.key._asdict(),
                "now": clock.as_stored(connection, clock.read_now(connection)),
            },
        )
        [row] = lock.rows(connection, place)
    return row[0], row[1]


def _read_values(connection: Connection, key: ScopeKey, names: Collection[str]) -> dict[str, str]:
    if len(names) == 1:
        [name] = names
        found = _READ_VALUE.rows(connection, {**_place(key), "key": name})
        return {row[0]: row[1] for row in found}
    values: dict[str, str] = {}
    for chunk in chunks(list(names)):
        rows = connection.execute(
            select(state_values.c.key, state_values.c.value).where(
                *_in_scope(key), state_values.c.key.in_(chunk)
            )
        )
        values |= {row.key: row.value for row in rows}
    return values


def _write_values(connection: Connection, key: ScopeKey, changed: Changes) -> None:
    if len(changed) == 1:
        [(name, text)] = changed.items()
        if text is not None:
            _SET_VALUE.rows(connection, {**_place(key), "key": name, "value": text})
            return
    for chunk in chunks(list(changed)):
        connection.execute(
            delete(state_values).where(*_in_scope(key), state_values.c.key.in_(chunk))
        )
    rows = [
        {
            "namespace": key.namespace,
            "scope": key.scope,
            "owner": key.owner,
            "key": name,
            "value": text,
        }
        for name, text in changed.items()
        if text is not None
    ]
    if rows:
        connection.execute(insert(state_values), rows)


def _size(name: str, text: str | None) -> int:
    return 0 if text is None else size_of(name) + size_of(text)


def _place(key: ScopeKey) -> dict[str, str]:
    return {"namespace": key.namespace, "scope": key.scope, "owner": key.owner}


def _is_scope(key: ScopeKey) -> tuple[ColumnElement[bool], ...]:
    return (
        state_scopes.c.namespace == key.namespace,
        state_scopes.c.scope == key.scope,
        state_scopes.c.owner == key.owner,
    )


def _in_scope(key: ScopeKey) -> tuple[ColumnElement[bool], ...]:
    return (
        state_values.c.namespace == key.namespace,
        state_values.c.scope == key.scope,
        state_values.c.owner == key.owner,
    )
