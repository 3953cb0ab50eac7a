"""The registry: which sessions there are, how they are set up, and who spawned whom."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from sessionsdb.content import StoredMessage
from sessionsdb.errors import (
    IdempotencyConflict,
    InvalidSessionId,
    SessionEnded,
    SessionExists,
    SessionHasChildren,
    SpawnDenied,
    UnknownSession,
)
from sessionsdb.operations.clock import as_utc, as_utc_or_none, now
from sessionsdb.operations.locks import lock_mailboxes, lock_sessions
from sessionsdb.schema import Key, mailboxes, sessions
from sessionsdb.types import (
    Children,
    Limits,
    SessionDetails,
    SessionId,
    SessionRecord,
    SessionSummary,
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


class Spawn(NamedTuple):
    """A child to create; a setting that is ``None`` is its parent's."""

    namespace: str
    parent: str
    session_id: str
    model: str | None
    system: str | None
    tools: Sequence[str] | None
    prompt: StoredMessage
    idempotency_key: str | None = None
    fingerprint: str | None = None
    trace: str | None = None
    """The ``traceparent`` of the spawn, where that is recorded."""


class Filter(NamedTuple):
    """Which sessions ``page`` shows; ``after`` is ``(last_active, id)`` of the last one seen."""

    channel: str | None = None
    peer: str | None = None
    parent: str | None = None
    root: str | None = None
    active_since: datetime | None = None
    include_ended: bool = False
    limit: int | None = None
    after: tuple[datetime, str] | None = None


_SUMMARY = (
    sessions.c.id,
    sessions.c.channel,
    sessions.c.peer,
    sessions.c.created_at,
    sessions.c.last_active,
    sessions.c.message_count,
    sessions.c.parent_id,
)

_DETAILS = (
    select(
        *_SUMMARY,
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
    return details(row, pending=row.waiting, running=bool(row.running))


def details(row: Row[*tuple[Any, ...]], *, pending: int, running: bool) -> SessionDetails:
    """The value for a row of ``sessions``, as a typed or a textual statement returned it."""
    return SessionDetails.model_construct(
        **_summary_fields(row),
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


def _summary_fields(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
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
        SessionRecord.model_construct(
            id=SessionId(row.id),
            message_count=row.message_count,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in connection.execute(statement)
    ]


def page(connection: Connection, namespace: str, wanted: Filter) -> list[SessionSummary]:
    """A page of sessions by ``last_active``, oldest first, equal times by id.

    Each branch below is read in that order from an index of its own, no more of it than a page,
    and the branches are merged here: neither database sorts anything.
    """
    rows: dict[str, Row[*tuple[Any, ...]]] = {}
    for scope in _scopes(connection, namespace, wanted):
        # A session that ends between the two reads is in both, never in none.
        for ended in _halves(wanted):
            statement = _branch(namespace, wanted, ended).where(scope.condition)
            if scope.single:  # not worth a sort, which PostgreSQL would make
                statement = statement.order_by(None).limit(None)
            rows |= {row.id: row for row in connection.execute(statement)}
    ordered = sorted(rows.values(), key=lambda row: (row.last_active, row.id))
    return [
        SessionSummary.model_construct(**_summary_fields(row)) for row in ordered[: wanted.limit]
    ]


class _Scope(NamedTuple):
    """A part of the registry to look at."""

    condition: ColumnElement[bool]
    single: bool = False


def _scopes(connection: Connection, namespace: str, wanted: Filter) -> list[_Scope]:
    """All of the registry, or a tree and its root."""
    if wanted.root is None:
        return [_Scope(sessions.c.namespace == namespace)]
    top = connection.execute(
        select(sessions.c.root_id).where(
            sessions.c.namespace == namespace, sessions.c.id == wanted.root
        )
    ).one_or_none()
    if top is None:
        return []
    if top.root_id is None:
        return [
            _Scope(sessions.c.id == wanted.root, single=True),
            _Scope(sessions.c.root_id == wanted.root),
        ]
    return [_Scope(sessions.c.id.in_(_subtree(namespace, wanted.root)))]


def _halves(wanted: Filter) -> tuple[bool | None, ...]:
    """Whether to read the live ones, the ended, either apart, or both as one (``None``): the
    indices of trees and of children hold both."""
    if not wanted.include_ended:
        return (False,)
    return (None,) if wanted.root is not None or wanted.parent is not None else (False, True)


def _branch(namespace: str, wanted: Filter, ended: bool | None) -> Select[Any]:
    place = tuple_(sessions.c.last_active, sessions.c.id)
    conditions = [sessions.c.namespace == namespace]
    if ended is not None:
        conditions.append(
            sessions.c.ended_at.is_not(None) if ended else sessions.c.ended_at.is_(None)
        )
    if wanted.channel is not None:
        conditions.append(sessions.c.channel == wanted.channel)
    if wanted.peer is not None:
        conditions.append(sessions.c.peer == wanted.peer)
    if wanted.parent is not None:
        conditions.append(sessions.c.parent_id == wanted.parent)
    if wanted.active_since is not None:
        conditions.append(sessions.c.last_active >= wanted.active_since)
    if wanted.after is not None:
        active, last_id = wanted.after
        conditions.append(
            place > tuple_(literal(active, sessions.c.last_active.type), literal(last_id, Key))
        )
    return (
        select(*_SUMMARY)
        .where(*conditions)
        .order_by(sessions.c.last_active, sessions.c.id)
        .limit(wanted.limit)
    )


def place_of(connection: Connection, namespace: str, session_id: str) -> tuple[datetime, str]:
    """Where a session stands in the order of ``page``. Raises ``UnknownSession``."""
    active = connection.execute(
        select(sessions.c.last_active).where(
            sessions.c.namespace == namespace, sessions.c.id == session_id
        )
    ).scalar_one_or_none()
    if active is None:
        raise UnknownSession(session_id)
    return active, session_id


def subtree(connection: Connection, namespace: str, session_id: str) -> list[str]:
    """The ids of a session and of all below it."""
    return list(connection.execute(_subtree(namespace, session_id)).scalars())


def _subtree(namespace: str, session_id: str) -> Select[str]:
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
        parent = _held(connection, namespace, registration.parent)
        if parent.ended_at is not None:
            raise SessionEnded(registration.parent)
        _refuse_long_ids(registration.parent, session_id)
        root, depth = parent.root_id or registration.parent, parent.depth + 1
    if not _create(connection, registration, root=root, depth=depth) and not exist_ok:
        raise SessionExists(session_id)
    return get(connection, namespace, session_id)


def create_for_store(connection: Connection, namespace: str, session_id: str) -> None:
    """Create a session that is about to get a transcript, unless it exists."""
    _create(connection, Registration(namespace, session_id, STORE_CHANNEL, session_id))


def spawn(connection: Connection, request: Spawn, limits: Limits) -> tuple[str, bool]:
    """Create a child, unless its idempotency key is known: its id, and whether it is new.

    Depth, number of children and tools are checked while the parent's mailbox is held, so two
    spawns can't both take the last place. The prompt is the caller's to send.
    """
    parent = _held(connection, request.namespace, request.parent)
    if request.idempotency_key is not None:
        known = connection.execute(
            select(sessions.c.id, sessions.c.fingerprint).where(
                sessions.c.namespace == request.namespace,
                sessions.c.parent_id == request.parent,
                sessions.c.idempotency_key == request.idempotency_key,
            )
        ).one_or_none()
        if known is not None:
            if known.fingerprint != request.fingerprint:
                raise IdempotencyConflict(request.parent, request.idempotency_key)
            return known.id, False
    if parent.ended_at is not None:
        raise SessionEnded(request.parent)
    if len(request.parent.encode()) > TREE_ID_BYTES:
        raise SpawnDenied(
            request.parent, f"its id is over {TREE_ID_BYTES} bytes, too long to be in a tree"
        )
    depth = parent.depth + 1
    if depth > limits.depth:
        raise SpawnDenied(
            request.parent,
            f"the child would be at depth {depth}, the limit is {limits.depth}; "
            "do the work here, or raise Limits.depth",
        )
    _refuse_more_children(connection, request, limits)
    allowed = None if parent.tools is None else json.loads(parent.tools)
    if request.tools is not None and allowed is not None:
        outside = sorted(set(request.tools) - set(allowed))
        if outside:
            raise SpawnDenied(
                request.parent,
                f"tools {outside} are not among its own {allowed}; leave them out",
            )
    registration = Registration(
        request.namespace,
        request.session_id,
        channel="spawned",
        peer=f"spawned-by-{request.parent}",
        parent=request.parent,
        model=parent.model if request.model is None else request.model,
        system=parent.system if request.system is None else request.system,
        tools=allowed if request.tools is None else request.tools,
        idempotency_key=request.idempotency_key,
        fingerprint=request.fingerprint,
    )
    if not _create(connection, registration, root=parent.root_id or request.parent, depth=depth):
        raise SessionExists(request.session_id)
    return request.session_id, True


def _refuse_more_children(connection: Connection, request: Spawn, limits: Limits) -> None:
    living = (
        select(literal(1))
        .where(
            sessions.c.namespace == request.namespace,
            sessions.c.parent_id == request.parent,
            sessions.c.ended_at.is_(None),
        )
        .limit(limits.children)
        .subquery()
    )
    if connection.execute(select(func.count()).select_from(living)).scalar_one() >= limits.children:
        raise SpawnDenied(
            request.parent,
            f"it has {limits.children} living children, the limit; "
            "end some of them, or raise Limits.children",
        )


def _held(connection: Connection, namespace: str, parent: str) -> Row[*tuple[Any, ...]]:
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


def _refuse_long_ids(*ids: str) -> None:
    for session_id in ids:
        if len(session_id.encode()) > TREE_ID_BYTES:
            raise InvalidSessionId(
                f"session id {session_id:.40}… is over {TREE_ID_BYTES} bytes in UTF-8, "
                "too long for a session that has a parent or children"
            )


def _create(
    connection: Connection, registration: Registration, *, root: str | None = None, depth: int = 0
) -> bool:
    """Insert the session and its mailbox; False if there is one already."""
    present = now(connection)
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    made = connection.execute(
        dialect.insert(sessions)
        .values(
            namespace=registration.namespace,
            id=registration.session_id,
            parent_id=registration.parent,
            root_id=root,
            depth=depth,
            channel=registration.channel,
            peer=registration.peer,
            model=registration.model,
            system=registration.system,
            tools=None if registration.tools is None else json.dumps(list(registration.tools)),
            metadata=None if not registration.metadata else json.dumps(registration.metadata),
            created_at=present,
            updated_at=present,
            last_active=present,
            idempotency_key=registration.idempotency_key,
            fingerprint=registration.fingerprint,
        )
        .on_conflict_do_nothing(index_elements=[sessions.c.namespace, sessions.c.id])
        .returning(sessions.c.id)
    ).first()
    if made is None:
        return False
    connection.execute(
        insert(mailboxes).values(
            namespace=registration.namespace, session_id=registration.session_id
        )
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


def remove(connection: Connection, namespace: str, session_id: str, children: Children) -> None:
    """Delete a session with its transcript and inbox; an unknown one is passed over.

    Its children become roots (``detach``), are deleted with all below them (``cascade``), or keep
    it from being deleted (``refuse``: ``SessionHasChildren``).
    """
    family = hold_subtree(connection, namespace, session_id)
    if len(family) > 1 and children == "refuse":
        raise SessionHasChildren(session_id)
    if children == "detach" and len(family) > 1:
        connection.execute(_DETACH_CHILDREN, {"namespace": namespace, "parent": session_id})
        family = [session_id]
    if not family:
        return
    # Leaves first would take a statement a level: the links inside the family go before it does.
    for chunk in _chunks(family):
        connection.execute(
            update(sessions)
            .where(sessions.c.namespace == namespace, sessions.c.id.in_(chunk))
            .values(parent_id=None)
        )
    for chunk in _chunks(family):
        connection.execute(
            delete(sessions).where(sessions.c.namespace == namespace, sessions.c.id.in_(chunk))
        )


def hold_subtree(connection: Connection, namespace: str, session_id: str) -> list[str]:
    """A session and all below it, held; a child that is spawned meanwhile is held too."""
    held: set[str] = set()
    while not held.issuperset(family := subtree(connection, namespace, session_id)):
        lock_mailboxes(connection, [(namespace, member) for member in family])
        held.update(family)
    lock_sessions(connection, [(namespace, member) for member in family])
    return family


# What is below the session becomes trees of its own, each with a child of it at the top. A known
# spawn is forgotten with the parent that asked for it.
_DETACH_CHILDREN = text("""
WITH RECURSIVE fallen(namespace, id, top, depth) AS (
    SELECT namespace, id, id, 0
    FROM sessions WHERE namespace = :namespace AND parent_id = :parent
    UNION ALL
    SELECT child.namespace, child.id, fallen.top, fallen.depth + 1
    FROM fallen JOIN sessions AS child
        ON child.namespace = fallen.namespace AND child.parent_id = fallen.id
)
UPDATE sessions
SET parent_id = CASE WHEN fallen.depth > 0 THEN parent_id END,
    root_id = CASE WHEN fallen.depth > 0 THEN fallen.top END,
    depth = fallen.depth,
    idempotency_key = CASE WHEN fallen.depth > 0 THEN idempotency_key END
FROM fallen
WHERE sessions.namespace = fallen.namespace AND sessions.id = fallen.id
""")


def _chunks(ids: Sequence[str], size: int = 500) -> Iterable[Sequence[str]]:
    # Databases limit the parameters of a statement.
    return (ids[start : start + size] for start in range(0, len(ids), size))
