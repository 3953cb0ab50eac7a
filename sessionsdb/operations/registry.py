"""The registry: sessions, their settings and their parents."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, select

from sessionsdb import operations
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import (
    InvalidSessionId,
    SessionEnded,
    SessionExists,
    UnknownSession,
)
from sessionsdb.operations import session_rows
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.operations.session_rows import (
    DETAILS,
    SessionRow,
    session_details,
)
from sessionsdb.schema import first_epoch, new_incarnation, sessions
from sessionsdb.types import (
    SessionDetails,
    SessionId,
    SessionRecord,
)

T = TypeVar("T")

TREE_ID_BYTES = 1_024
"""An id in a tree is in one index entry with its parent's or its root's id. PostgreSQL limits an
entry to 2,704 bytes: without this bound two long ids would fail in the database."""

FIRST_VERSION = 1
"""The version of a session without a history. 0 means that there is no session."""

STORE_CHANNEL = "store"
"""The channel of a session that ``save`` or ``append`` created."""


class Registration(NamedTuple):
    """A session to create."""

    namespace: str
    session_id: str
    channel: str
    peer: str
    parent: str | None = None
    model: str | None = None
    system: str | None = None
    tools: Sequence[str] | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None


_SELECT_ONE = "SELECT 1 FROM sessions WHERE namespace = :namespace AND id = :id"

_EXISTS = Statement(_SELECT_ONE)
_LOCK = Statement(f"{_SELECT_ONE} FOR NO KEY UPDATE")


# ---- reading ---------------------------------------------------------------------------------


def exists(connection: Connection, namespace: str, session_id: str) -> bool:
    return _EXISTS.row(connection, {"namespace": namespace, "id": session_id}) is not None


def require(connection: Connection, namespace: str, session_id: str) -> None:
    """Raise ``UnknownSession`` unless the session exists."""
    if not exists(connection, namespace, session_id):
        raise UnknownSession(session_id)


def require_locked(connection: Connection, namespace: str, session_id: str) -> None:
    """Lock a session until the commit. Raise ``UnknownSession`` unless it exists.

    A look behind ``lock_sessions`` could find one that was created in the meantime, and unlocked.
    """
    lock = _LOCK if dialect_of(connection).has_row_locks else _EXISTS
    if lock.row(connection, {"namespace": namespace, "id": session_id}) is None:
        raise UnknownSession(session_id)


def ids_with_prefix(
    connection: Connection, namespace: str, prefix: str, *, limit: int
) -> list[str]:
    """Return the first ``limit`` ids that begin with ``prefix``, in their order."""
    rows = connection.execute(
        select(sessions.c.id)
        .where(sessions.c.namespace == namespace, sessions.c.id >= prefix)
        .order_by(sessions.c.id)
        .limit(limit)
    )
    return [id for id in rows.scalars() if id.startswith(prefix)]


def get(connection: Connection, namespace: str, session_id: str) -> SessionDetails:
    """Return a session. Raises ``UnknownSession``."""
    row = DETAILS.row(connection, {"namespace": namespace, "id": session_id})
    if row is None:
        raise UnknownSession(session_id)
    return details_from(connection, namespace, row)


def details_from(connection: Connection, namespace: str, row: Sequence[Any]) -> SessionDetails:
    """Return the session of a row of ``SELECT_DETAILS``."""
    *session, pending, running, question = row
    return session_details(
        SessionRow._make(session),
        pending=pending,
        running=bool(running),
        held=None
        if question is None
        else operations.question_rows.read_open(connection, (namespace, session[0]), question),
    )


def records(
    connection: Connection, namespace: str, *, offset: int = 0, limit: int | None = None
) -> list[SessionRecord]:
    """Return sessions by ``updated_at``, newest last, equal times by id."""
    statement = (
        select(
            sessions.c.id,
            sessions.c.message_count,
            sessions.c.created_at,
            sessions.c.updated_at,
        )
        .where(sessions.c.namespace == namespace)
        .order_by(sessions.c.updated_at, sessions.c.id)
    )
    if limit is not None:
        statement = statement.limit(limit)
    if offset:
        statement = statement.offset(offset)
    return [
        SessionRecord.from_fields(
            id=SessionId(row.id),
            message_count=row.message_count,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in connection.execute(statement)
    ]


# Joined on both columns. With the namespace as a value SQLite may first read all children of the
# namespace, to build a filter. A circle of parents, which only other code makes, leads back to the
# top, so the walk never enters it again. As a value the top would have SQLite build a filter too.
_TREE = """
WITH RECURSIVE tree(namespace, id, top) AS (
    SELECT s.namespace, s.id, s.id FROM sessions AS s WHERE s.namespace = :namespace AND s.id = :id
    UNION ALL
    SELECT child.namespace, child.id, tree.top
    FROM tree JOIN sessions AS child
        ON child.namespace = tree.namespace AND child.parent_id = tree.id AND child.id <> tree.top
)
"""
_SUBTREE = Statement(f"{_TREE} SELECT id FROM tree")
_SUBTREE_WITH_ENDS = Statement(f"""
{_TREE}
SELECT s.id, s.ended_at IS NOT NULL
FROM tree JOIN sessions AS s ON s.namespace = tree.namespace AND s.id = tree.id
ORDER BY s.depth, s.created_at, s.id
""")


def subtree(connection: Connection, namespace: str, session_id: str) -> list[str]:
    """Return the ids of a session and of its descendants."""
    return [id for (id,) in _SUBTREE.rows(connection, {"namespace": namespace, "id": session_id})]


def subtree_with_ends(
    connection: Connection, namespace: str, session_id: str
) -> list[tuple[str, bool]]:
    """Return the ids of a session and of its descendants, each with whether it has ended."""
    rows = _SUBTREE_WITH_ENDS.rows(connection, {"namespace": namespace, "id": session_id})
    return [(id, bool(ended)) for id, ended in rows]


# ---- creating --------------------------------------------------------------------------------


def register(
    connection: Connection, registration: Registration, *, exist_ok: bool = False
) -> SessionDetails:
    """Create a session. With ``exist_ok`` a session that exists is not changed.

    Raises ``SessionExists``, ``SessionEnded`` if it exists and has ended, and for the parent
    ``UnknownSession`` and ``SessionEnded``.
    """
    namespace, session_id = registration.namespace, registration.session_id
    root, depth = None, 0
    if registration.parent is not None:
        parent = lock_parent(connection, namespace, registration.parent)
        if parent.ended_at is not None:
            raise SessionEnded(registration.parent)
        check_id_bytes(registration.parent, session_id)
        root, depth = parent.root_id or registration.parent, parent.depth + 1
    for _ in range(CREATE_ATTEMPTS):
        created = create(connection, registration, root=root, depth=depth)
        if not created and not exist_ok:
            raise SessionExists(session_id)
        with suppress(UnknownSession):  # another call has deleted it since
            details = get(connection, namespace, session_id)
            if details.ended_at is not None:
                raise SessionEnded(session_id)
            return details
    raise UnknownSession(session_id)


def create_for_store(
    connection: Connection, namespace: str, session_id: str, *, writes: bool
) -> bool:
    """Create a session for a transcript, and return false if it exists.

    ``writes``: the caller writes to the transcript next, which makes its version 1.
    """
    registration = Registration(namespace, session_id, STORE_CHANNEL, session_id)
    return create(connection, registration, version=0 if writes else FIRST_VERSION)


CREATE_ATTEMPTS = 5
"""How often a session for a transcript is created while others create and delete it at once."""


def lock_or_create(
    connection: Connection,
    namespace: str,
    session_id: str,
    lock: Callable[[Connection, str, str], T | None],
    *,
    writes: bool,
) -> tuple[T, bool]:
    """Create a session for a transcript and lock it, and return whether it is new.

    ``lock`` returns ``None`` if there is no session. Another call may have created the session, and
    a third one may have deleted it before the lock. Raises ``UnknownSession`` if that happens again
    and again.
    """
    for _ in range(CREATE_ATTEMPTS):
        created = create_for_store(connection, namespace, session_id, writes=writes)
        locked = lock(connection, namespace, session_id)
        if locked is not None:
            return locked, created
    raise UnknownSession(session_id)


def create_all_for_store(
    connection: Connection, wanted: Mapping[SessionKey, bool]
) -> Collection[SessionKey]:
    """Create sessions for transcripts as ``create_for_store``, by one statement for each table.

    Each key has its ``writes``. Return the keys of the sessions that did not exist.
    """
    if not wanted:
        return ()
    new = [
        operations.transcript_types.NewSession(
            *key, 0 if writes else FIRST_VERSION, new_incarnation(), first_epoch()
        )
        for key, writes in sorted(wanted.items())
    ]
    return dialect_of(connection).create_sessions(connection, new, STORE_CHANNEL)


class ParentRow(NamedTuple):
    """The columns of a session that decide about a new child."""

    root_id: str | None
    depth: int
    model: str | None
    system: str | None
    tools: str | None
    ended_at: datetime | str | None


_SELECT_PARENT = f"""
SELECT {", ".join(ParentRow._fields)} FROM sessions WHERE namespace = :namespace AND id = :id
"""

_READ_PARENT = Statement(_SELECT_PARENT)
_LOCK_PARENT = Statement(f"{_SELECT_PARENT} FOR NO KEY UPDATE")


def lock_parent(connection: Connection, namespace: str, parent: str) -> ParentRow:
    """Lock a session and return its row. Raises ``UnknownSession``.

    Until the commit it is not ended or deleted, and gets no other child.
    """
    lock_mailboxes(connection, [(namespace, parent)])
    lock = _LOCK_PARENT if dialect_of(connection).has_row_locks else _READ_PARENT
    row = lock.row(connection, {"namespace": namespace, "id": parent})
    if row is None:
        raise UnknownSession(parent)
    return ParentRow(*row)


def check_id_bytes(*ids: str) -> None:
    """Raise ``InvalidSessionId`` for an id that is too long to be in a tree."""
    for session_id in ids:
        if len(session_id.encode()) > TREE_ID_BYTES:
            raise InvalidSessionId(
                f"session id {session_id:.40}… is over {TREE_ID_BYTES} bytes in UTF-8, "
                "too long for a session that has a parent or children"
            )


_CREATE_MAILBOX = Statement(
    "INSERT INTO mailboxes (namespace, session_id, epoch) VALUES (:namespace, :id, :epoch)"
)


def create(
    connection: Connection,
    registration: Registration,
    *,
    root: str | None = None,
    depth: int = 0,
    version: int = FIRST_VERSION,
) -> bool:
    """Insert the session and its mailbox. Return false if the session exists."""
    values = {
        "namespace": registration.namespace,
        "id": registration.session_id,
        "parent_id": registration.parent,
        "root_id": root,
        "depth": depth,
        "channel": registration.channel,
        "peer": registration.peer,
        "model": registration.model,
        "system": registration.system,
        "tools": None if registration.tools is None else json.dumps(list(registration.tools)),
        "metadata": None if not registration.metadata else json.dumps(registration.metadata),
        "idempotency_key": registration.idempotency_key,
        "fingerprint": registration.fingerprint,
        "incarnation": new_incarnation(),
        "version": version,
    }
    if not dialect_of(connection).insert_session(connection, values):
        return False
    _CREATE_MAILBOX.rows(
        connection,
        {
            "namespace": registration.namespace,
            "id": registration.session_id,
            "epoch": first_epoch(),
        },
    )
    return True


# ---- changing --------------------------------------------------------------------------------


def change(
    connection: Connection, namespace: str, session_id: str, values: dict[str, Any]
) -> SessionDetails:
    """Set the given columns and return the session. Raises ``UnknownSession``."""
    set_columns(connection, namespace, session_id, values)
    return get(connection, namespace, session_id)


def set_columns(
    connection: Connection, namespace: str, session_id: str, values: dict[str, Any]
) -> None:
    """Set the given columns: some of ``channel``, ``peer``, ``model``, ``system``, ``tools`` and
    ``metadata``. An unknown session is passed over."""
    if values:
        stored = as_stored(values) | {"namespace": namespace, "id": session_id}
        session_rows.set_columns(tuple(values)).rows(connection, stored)


def as_stored(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the values of columns as they are stored: lists and objects as JSON."""
    return {
        name: json.dumps(value) if name in ("tools", "metadata") and value is not None else value
        for name, value in values.items()
    }
