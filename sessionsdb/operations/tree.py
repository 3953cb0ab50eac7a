"""Trees of sessions: creating a child, locking a subtree, and deleting sessions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.errors import (
    IdempotencyConflict,
    SessionEnded,
    SessionExists,
    SessionHasChildren,
    SpawnDenied,
)
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.json_text import parse
from sessionsdb.operations import child_reports, registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.types import Children, Limits


class Spawn(NamedTuple):
    """A child to create. A setting that is ``None`` is copied from the parent."""

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
    """The ``traceparent`` of the spawn, if one is recorded."""
    extra: str | None = None
    """Author and metadata of the prompt: see ``messages/extra.py``."""
    reports: bool = False
    """Whether the parent is told what came of the child: see ``child_reports.py``."""


SPAWNED = Statement("""
SELECT id, fingerprint FROM sessions
WHERE namespace = :namespace AND parent_id = :parent AND idempotency_key = :idempotency_key
""")


def create_child(connection: Connection, request: Spawn, limits: Limits) -> tuple[str, bool]:
    """Create a child, and return its id and whether it is new.

    It is not new if the parent has a child with this idempotency key already. Depth, number of
    children and tools are checked while the parent is locked, so two spawns can't both be the last
    that is allowed. The caller sends the prompt. Raises ``UnknownSession``, ``SessionEnded``,
    ``SpawnDenied``, ``IdempotencyConflict`` and ``SessionExists``.
    """
    parent = registry.lock_parent(connection, request.namespace, request.parent)
    if request.idempotency_key is not None:
        known = SPAWNED.row(
            connection,
            {
                "namespace": request.namespace,
                "parent": request.parent,
                "idempotency_key": request.idempotency_key,
            },
        )
        if known is not None:
            child, fingerprint = known
            if fingerprint != request.fingerprint:
                raise IdempotencyConflict(request.parent, request.idempotency_key)
            return child, False
    if parent.ended_at is not None:
        raise SessionEnded(request.parent)
    if len(request.parent.encode()) > registry.TREE_ID_BYTES:
        raise SpawnDenied(
            request.parent,
            f"its id is over {registry.TREE_ID_BYTES} bytes, too long to be in a tree",
        )
    depth = parent.depth + 1
    if depth > limits.depth:
        raise SpawnDenied(
            request.parent,
            f"the child would be at depth {depth}, the limit is {limits.depth}; "
            "do the work here, or raise Limits.depth",
        )
    check_child_limit(connection, request.namespace, request.parent, limits)
    allowed = None if parent.tools is None else parse(parent.tools)
    if request.tools is not None and allowed is not None:
        outside = sorted(set(request.tools) - set(allowed))
        if outside:
            raise SpawnDenied(
                request.parent,
                f"tools {outside} are not among its own {allowed}; leave them out",
            )
    registration = registry.Registration(
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
    if not registry.create(
        connection, registration, root=parent.root_id or request.parent, depth=depth
    ):
        raise SessionExists(request.session_id)
    return request.session_id, True


_COUNT_LIVING = Statement("""
SELECT pg_catalog.count(*) FROM (
    SELECT 1 FROM sessions
    WHERE namespace = :namespace AND parent_id = :parent AND ended_at IS NULL
    LIMIT :limit
) AS living
""")


def check_child_limit(connection: Connection, namespace: str, parent: str, limits: Limits) -> None:
    """Raise ``SpawnDenied`` if a locked session has as many living children as is allowed."""
    [[living]] = _COUNT_LIVING.rows(
        connection, {"namespace": namespace, "parent": parent, "limit": limits.children}
    )
    if living >= limits.children:
        raise SpawnDenied(
            parent,
            f"it has {limits.children} living children, the limit; "
            "end some of them, or raise Limits.children",
        )


@cache
def _deletion(in_ids: str) -> tuple[Statement, ...]:
    """Return the statements that delete sessions with all their rows."""
    # Leaves first would take one statement a level. So the links inside the subtree go first.
    return tuple(
        Statement(f"{change} WHERE namespace = :namespace AND {id} {in_ids}")
        for change, id in (
            ("UPDATE sessions SET parent_id = NULL", "id"),
            ("DELETE FROM pieces", "session_id"),
            ("DELETE FROM sessions", "id"),
        )
    )


def delete_session(
    connection: Connection, namespace: str, session_id: str, children: Children
) -> bool:
    """Delete a session with its transcript and inbox. An unknown session is passed over.

    ``children``: ``detach`` makes its children roots, ``cascade`` deletes the whole subtree, and
    ``refuse`` raises ``SessionHasChildren``. The parent of a child that reports is told: return
    whether it was.
    """
    key = (namespace, session_id)
    parents = child_reports.open_among(connection, [key])
    ids = lock_subtree(connection, namespace, session_id, parents.values())
    if len(ids) > 1 and children == "refuse":
        raise SessionHasChildren(session_id)
    if children == "detach" and len(ids) > 1:
        _DETACH_CHILDREN.rows(connection, {"namespace": namespace, "parent": session_id})
        ids = [session_id]
    if not ids:
        return False
    reported = child_reports.send(connection, [child_reports.of_end(key, "deleted")])
    dialect = dialect_of(connection)
    unlink, *delete = _deletion(dialect.in_ids)
    for statement in delete if len(ids) == 1 else (unlink, *delete):
        statement.rows(connection, {"namespace": namespace, **dialect.ids_values(ids)})
    return reported


def lock_subtree(
    connection: Connection, namespace: str, session_id: str, others: Collection[SessionKey] = ()
) -> list[str]:
    """Lock a session and its descendants, and return their ids. Lock the ``others`` with them.

    A child that is spawned in the meantime is locked too.
    """
    locked: set[str] = set()
    while not locked.issuperset(ids := registry.subtree(connection, namespace, session_id)):
        lock_mailboxes(connection, [*((namespace, id) for id in ids), *others])
        locked.update(ids)
    lock_sessions(connection, [*((namespace, id) for id in ids), *others])
    return ids


# Each child becomes the root of a tree of its own. Its idempotency key belongs to the parent that
# spawned it, and goes with the parent.
_DETACH_CHILDREN = Statement("""
WITH RECURSIVE detached(namespace, id, top, depth, above) AS (
    SELECT namespace, id, id, 0, parent_id
    FROM sessions WHERE namespace = :namespace AND parent_id = :parent
    UNION ALL
    SELECT child.namespace, child.id, detached.top, detached.depth + 1, detached.above
    FROM detached JOIN sessions AS child
        ON child.namespace = detached.namespace AND child.parent_id = detached.id
        AND child.id <> detached.above
)
UPDATE sessions
SET parent_id = CASE WHEN detached.depth > 0 THEN parent_id END,
    root_id = CASE WHEN detached.depth > 0 THEN detached.top END,
    depth = detached.depth,
    idempotency_key = CASE WHEN detached.depth > 0 THEN idempotency_key END
FROM detached
WHERE sessions.namespace = detached.namespace AND sessions.id = detached.id
""")
