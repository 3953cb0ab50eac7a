"""The registry: which sessions there are, how they are set up, and who spawned whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    literal,
    select,
    update,
)

from sessionsdb.engine.clock import as_utc, as_utc_or_none, sqlite_now
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import (
    InvalidSessionId,
    SessionEnded,
    SessionExists,
    UnknownSession,
)
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.schema import first_epoch, mailboxes, sessions
from sessionsdb.types import (
    SessionDetails,
    SessionId,
    SessionRecord,
)

TREE_ID_BYTES = 1_024
"""An id in a tree stands in the same index entry as its parent's and its root's. PostgreSQL
limits an entry to 2,704 bytes: without this bound two long ids would fail in the database."""

STORE_CHANNEL = "store"
"""The channel of a session that came to be by ``save`` or ``append``."""


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


SUMMARY = (
    sessions.c.id,
    sessions.c.channel,
    sessions.c.peer,
    sessions.c.created_at,
    sessions.c.last_active,
    sessions.c.message_count,
    sessions.c.parent_id,
)


class SessionRow(NamedTuple):
    """What ``SessionDetails`` is made of, in the order in which statements select it."""

    id: str
    channel: str
    peer: str
    created_at: datetime | str
    last_active: datetime | str
    message_count: int
    parent_id: str | None
    root_id: str | None
    model: str | None
    system: str | None
    tools: str | None
    metadata: str | None
    version: int
    ended_at: datetime | str | None
    end_reason: str | None


_DETAILS = (
    select(
        *SUMMARY,
        sessions.c.root_id,
        sessions.c.model,
        sessions.c.system,
        sessions.c.tools,
        sessions.c.metadata,
        sessions.c.version,
        sessions.c.ended_at,
        sessions.c.end_reason,
        (mailboxes.c.pending - mailboxes.c.taken).label("waiting"),
        mailboxes.c.owner.is_not(None).label("running"),
    )
    .join(
        mailboxes,
        and_(
            mailboxes.c.namespace == sessions.c.namespace,
            mailboxes.c.session_id == sessions.c.id,
        ),
    )
    .where(sessions.c.namespace == bindparam("namespace"), sessions.c.id == bindparam("id"))
)

_EXISTS = select(literal(1)).where(
    sessions.c.namespace == bindparam("namespace"), sessions.c.id == bindparam("id")
)


# ---- reading ---------------------------------------------------------------------------------


def exists(connection: Connection, namespace: str, session_id: str) -> bool:
    found = connection.execute(_EXISTS, {"namespace": namespace, "id": session_id}).first()
    return found is not None


def require(connection: Connection, namespace: str, session_id: str) -> None:
    """Raises ``UnknownSession`` unless it exists."""
    if not exists(connection, namespace, session_id):
        raise UnknownSession(session_id)


def get(connection: Connection, namespace: str, session_id: str) -> SessionDetails:
    """Raises ``UnknownSession``."""
    row = connection.execute(_DETAILS, {"namespace": namespace, "id": session_id}).one_or_none()
    if row is None:
        raise UnknownSession(session_id)
    *session, pending, running = row
    return details(SessionRow(*session), pending=pending, running=bool(running))


def details(row: SessionRow, *, pending: int, running: bool) -> SessionDetails:
    """The value for a row of ``sessions``, as any kind of statement returned it."""
    return SessionDetails.from_fields(
        **summary_fields(row),
        root=None if row.root_id is None else SessionId(row.root_id),
        model=row.model,
        system=row.system,
        tools=None if row.tools is None else json.loads(row.tools),
        metadata={} if row.metadata is None else json.loads(row.metadata),
        version=row.version,
        pending=pending,
        running=running,
        ended_at=as_utc_or_none(row.ended_at),
        end_reason=row.end_reason,
    )


def summary_fields(row: Row[*tuple[Any, ...]] | SessionRow) -> dict[str, Any]:
    return {
        "id": SessionId(row.id),
        "channel": row.channel,
        "peer": row.peer,
        "created_at": as_utc(row.created_at),
        "last_active": as_utc(row.last_active),
        "message_count": row.message_count,
        "parent": None if row.parent_id is None else SessionId(row.parent_id),
    }


def records(
    connection: Connection, namespace: str, *, offset: int = 0, limit: int | None = None
) -> list[SessionRecord]:
    """All sessions by ``updated_at``, newest last, equal times by id."""
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


def subtree(connection: Connection, namespace: str, session_id: str) -> list[str]:
    """The ids of a session and of all below it."""
    return list(connection.execute(subtree_query(namespace, session_id)).scalars())


def subtree_query(namespace: str, session_id: str) -> Select[str]:
    tree = (
        select(sessions.c.namespace, sessions.c.id)
        .where(sessions.c.namespace == namespace, sessions.c.id == session_id)
        .cte("tree", recursive=True)
    )
    child = sessions.alias("child")
    # Joined on both columns: given the namespace as a value, SQLite may first read all children
    # there are, for a filter of them.
    below = select(child.c.namespace, child.c.id).where(
        child.c.namespace == tree.c.namespace, child.c.parent_id == tree.c.id
    )
    return select(tree.union_all(below).c.id)


# ---- creating --------------------------------------------------------------------------------


def register(
    connection: Connection, registration: Registration, *, exist_ok: bool = False
) -> SessionDetails:
    """Create a session. Raises ``SessionExists`` unless ``exist_ok``, which leaves a session that
    exists as it is; ``UnknownSession`` or ``SessionEnded`` for the parent."""
    namespace, session_id = registration.namespace, registration.session_id
    root, depth = None, 0
    if registration.parent is not None:
        parent = lock_parent(connection, namespace, registration.parent)
        if parent.ended_at is not None:
            raise SessionEnded(registration.parent)
        _check_id_bytes(registration.parent, session_id)
        root, depth = parent.root_id or registration.parent, parent.depth + 1
    if not create(connection, registration, root=root, depth=depth) and not exist_ok:
        raise SessionExists(session_id)
    return get(connection, namespace, session_id)


def create_for_store(connection: Connection, namespace: str, session_id: str) -> None:
    """Create a session that is about to get a transcript, unless it exists."""
    create(connection, Registration(namespace, session_id, STORE_CHANNEL, session_id))


def lock_parent(connection: Connection, namespace: str, parent: str) -> Row[*tuple[Any, ...]]:
    """The parent's row, held so that it is neither ended nor deleted nor given another child.
    Raises ``UnknownSession``."""
    lock_mailboxes(connection, [(namespace, parent)])
    lock_sessions(connection, [(namespace, parent)])
    row = connection.execute(
        select(
            sessions.c.root_id,
            sessions.c.depth,
            sessions.c.model,
            sessions.c.system,
            sessions.c.tools,
            sessions.c.ended_at,
        ).where(sessions.c.namespace == namespace, sessions.c.id == parent)
    ).one_or_none()
    if row is None:
        raise UnknownSession(parent)
    return row


def _check_id_bytes(*ids: str) -> None:
    for session_id in ids:
        if len(session_id.encode()) > TREE_ID_BYTES:
            raise InvalidSessionId(
                f"session id {session_id:.40}… is over {TREE_ID_BYTES} bytes in UTF-8, "
                "too long for a session that has a parent or children"
            )


_CREATE = """
INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer, model, system,
                      tools, metadata, created_at, updated_at, last_active,
                      idempotency_key, fingerprint)
VALUES (:namespace, :id, :parent, :root, :depth, :channel, :peer, :model, :system,
        :tools, :metadata, {now}, {now}, {now}, :key, :fingerprint)
ON CONFLICT (namespace, id) DO NOTHING
RETURNING id
"""
_CREATE_POSTGRESQL = Statement(_CREATE.format(now="statement_timestamp()"))
_CREATE_SQLITE = Statement(_CREATE.format(now=":now"))

_CREATE_MAILBOX = Statement(
    "INSERT INTO mailboxes (namespace, session_id, epoch) VALUES (:namespace, :id, :epoch)"
)


def create(
    connection: Connection, registration: Registration, *, root: str | None = None, depth: int = 0
) -> bool:
    """Insert the session and its mailbox; False if there is one already."""
    on_postgresql = connection.dialect.name == "postgresql"
    made = (_CREATE_POSTGRESQL if on_postgresql else _CREATE_SQLITE).row(
        connection,
        {
            "namespace": registration.namespace,
            "id": registration.session_id,
            "parent": registration.parent,
            "root": root,
            "depth": depth,
            "channel": registration.channel,
            "peer": registration.peer,
            "model": registration.model,
            "system": registration.system,
            "tools": None if registration.tools is None else json.dumps(list(registration.tools)),
            "metadata": None if not registration.metadata else json.dumps(registration.metadata),
            "key": registration.idempotency_key,
            "fingerprint": registration.fingerprint,
            "now": None if on_postgresql else sqlite_now(connection),
        },
    )
    if made is None:
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
    """Set the given columns. Raises ``UnknownSession``."""
    stored = dict(values)
    for name in ("tools", "metadata"):
        if stored.get(name) is not None:
            stored[name] = json.dumps(stored[name])
    if stored:
        connection.execute(
            update(sessions)
            .where(sessions.c.namespace == namespace, sessions.c.id == session_id)
            .values(**stored)
        )
    return get(connection, namespace, session_id)
