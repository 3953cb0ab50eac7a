"""Families of sessions: spawning a child, holding a tree, and deleting a part of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import (
    Connection,
    delete,
    func,
    literal,
    select,
    text,
    update,
)

from sessionsdb.errors import (
    IdempotencyConflict,
    SessionEnded,
    SessionExists,
    SessionHasChildren,
    SpawnDenied,
)
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import registry
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.schema import sessions
from sessionsdb.types import Children, Limits


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


def create_child(connection: Connection, request: Spawn, limits: Limits) -> tuple[str, bool]:
    """Create a child, unless its idempotency key is known: its id, and whether it is new.

    Depth, number of children and tools are checked while the parent's mailbox is held, so two
    spawns can't both take the last place. The prompt is the caller's to send.
    """
    parent = registry.lock_parent(connection, request.namespace, request.parent)
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
    _check_child_limit(connection, request, limits)
    allowed = None if parent.tools is None else json.loads(parent.tools)
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


def _check_child_limit(connection: Connection, request: Spawn, limits: Limits) -> None:
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


def delete_session(
    connection: Connection, namespace: str, session_id: str, children: Children
) -> None:
    """Delete a session with its transcript and inbox; an unknown one is passed over.

    Its children become roots (``detach``), are deleted with all below them (``cascade``), or keep
    it from being deleted (``refuse``: ``SessionHasChildren``).
    """
    family = lock_subtree(connection, namespace, session_id)
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


def lock_subtree(connection: Connection, namespace: str, session_id: str) -> list[str]:
    """A session and all below it, held; a child that is spawned meanwhile is held too."""
    held: set[str] = set()
    while not held.issuperset(family := registry.subtree(connection, namespace, session_id)):
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
